"""A new registry with a clock that ticks once per reading."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_kit import Clock

from efface.registry import Registry


@pytest.fixture
def reg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.delenv("EFFACE_VAULT_KEY", raising=False)
    with Registry.open(tmp_path / "registry", create=True, clock=Clock()) as opened:
        yield opened
