"""A new registry with a clock that ticks once per reading."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_kit import Clock

from efface.registry import Registry


@pytest.fixture
def reg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    for name in ("EFFACE_VAULT_KEY", "EFFACE_VAULT_KEY_FILE", "EFFACE_VAULT_KEY_SOURCE"):
        monkeypatch.delenv(name, raising=False)
    with Registry.open(tmp_path / "registry", create=True, clock=Clock()) as opened:
        yield opened
