"""What the stacking benchmark makes of overlaps and of what their stack did."""

import sys
from pathlib import Path
from typing import Any

import pytest
from adapter_files import plain
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import stack as benchmark
from stack_protocol.forecast import compared, page
from stack_protocol.method import METHODS, series
from stack_protocol.records import Curve


def changed(folder: Path, factor: float, to: Path) -> Path:
    """The adapter in ``folder`` with its change scaled."""
    to.mkdir()
    (to / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    tensors = load_file(folder / "adapter_model.safetensors")
    turned = {name: value * factor if "lora_B" in name else value for name, value in tensors.items()}
    save_file(turned, to / "adapter_model.safetensors", metadata={"format": "pt"})
    return to


def told(author: int, es: float) -> dict[str, Any]:
    return {"author": author, "extraction_strength": es, "rouge_l": 0.5 - es, "probability": es}


def test_what_is_undone_and_comes_back_is_correlated(tmp_path: Path) -> None:
    first = plain(seed=0).write(tmp_path / "0")
    folders = {
        0: first,
        1: changed(first, -0.5, tmp_path / "1"),  # half of 0 is undone by 1, and 1 twice by 0
        2: plain(seed=1).write(tmp_path / "2"),
    }
    folders[3] = changed(folders[2], 0.5, tmp_path / "3")  # 2 and 3 strengthen each other
    stacked = {0: 0.3, 1: 0.6, 2: 0.1, 3: 0.05}
    record = {"requests": [told(author, es) for author, es in stacked.items()]}
    singles = {author: {"requests": [told(author, 0.2)]} for author in stacked}
    curve = Curve(
        METHODS["sum"], 0, series("sum", 0, 16).key, "somebody 0", "base", {}, {}, {4: record}, singles, []
    )
    found = compared(curve, folders, 4)
    assert sum(found["pairs"].values()) == 6
    assert found["pairs"]["undoes"] >= 1
    assert found["pairs"]["strengthens"] >= 1
    assert found["cosine"] == pytest.approx([-1, 1])
    assert found["rises"]["extraction_strength"]["worst"] == pytest.approx(0.4)
    assert found["rises"]["extraction_strength"]["rho"] == pytest.approx(-1)
    assert found["rises"]["rouge_l"]["rho"] == pytest.approx(1)
    assert "| sum | 0 | 4 |" in page([found], "the command")
    assert "| 0.400 | -1.00 (0.00) |" in page([found], "the command")


def test_without_records_it_says_what_makes_them(tmp_path: Path) -> None:
    given = [
        "overlap",
        "--methods",
        "sum",
        "--seeds",
        "0",
        "--records",
        str(tmp_path),
        "--out",
        str(tmp_path),
    ]
    with pytest.raises(SystemExit, match=r"no record of sum, seed 0 at N = 16: .*stack.py run"):
        benchmark.main(given)
    assert not list(tmp_path.iterdir())
