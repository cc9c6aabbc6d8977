"""Which adapters are compacted together: without a model."""

from pathlib import Path
from typing import Any

import pytest
from registry_kit import BASE, answered, ask, lora, seal

from efface.recipes.compact_rows import to_compact
from efface.recipes.errors import RequestError
from efface.registry import Registry


@pytest.mark.parametrize("other", [{"base": "sha256:" + "c" * 64}, {"quantization": "int8"}], ids=str)
def test_adapters_on_two_bases_are_named_with_both(tmp_path: Path, other: dict[str, Any]) -> None:
    with Registry.open(tmp_path / "registry", create=True) as reg:
        one, first = answered(reg, tmp_path, 1)
        two = ask(reg)
        second = seal(reg, lora(tmp_path / "lora-2", 2), [two], **other)
        with pytest.raises(RequestError, match="one base at a time") as refused:
            to_compact(reg, [one, two], None)
    on = {"base": BASE, "quantization": "nf4", **other}
    for said in (
        f"{first.digest} on base {BASE} at nf4",
        f"{second.digest} on base {on['base']} at {on['quantization']}",
    ):
        assert said in str(refused.value)
