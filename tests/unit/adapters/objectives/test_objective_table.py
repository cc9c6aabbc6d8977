"""The table says what the functions are, and the committed page says what the table says."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from efface.adapters import objectives
from efface.adapters.objectives import OBJECTIVES, Objective, document

PAGE = Path(__file__).parents[4] / "docs" / "objectives.md"
REFERENCED = {"npo", "dpo", "altpo", "ipo", "kto_undesirable", "undial", "retain_kl", "rmu_retain"}
INPUTS = {
    ("sequence", "logps"): {"logps", "ref_logps", "lengths", "alternate_logps", "ref_alternate_logps"},
    ("token", "logps"): {"logps", "mask", "alternate_logps", "alternate_mask"},
    ("token", "logits"): {"logits", "targets", "ref_logits"},
    ("token", "hidden"): {"hidden", "ref_hidden", "control"},
}


def test_what_needs_what_as_the_papers_say() -> None:
    rows = OBJECTIVES.values()
    assert {row.name for row in rows if row.needs_reference} == REFERENCED
    assert {row.name for row in rows if row.needs_alternates} == {"dpo", "altpo", "ipo", "idk_nll"}
    assert {row.name for row in rows if row.paired} == {"dpo", "altpo", "ipo"}
    assert {row.name for row in rows if not row.proven} == {"ipo", "kto_undesirable"}
    assert {row.name for row in rows if row.takes == "logits"} == {
        "ihl", "ce_u", "undial", "pdu", "bst", "retain_kl",
    }  # fmt: skip
    assert {row.name for row in rows if row.takes == "hidden"} == {"rmu", "rmu_retain"}
    assert {row.name for row in rows if row.level == "sequence"} == {
        "npo", "simnpo", "dpo", "altpo", "ipo", "kto_undesirable",
    }  # fmt: skip


def test_defaults_are_those_of_the_field() -> None:
    found = {name: dict(row.defaults) for name, row in OBJECTIVES.items() if row.defaults}
    assert found == {
        "npo": {"beta": 0.1},
        "simnpo": {"beta": 2.5, "delta": 0.0},
        "dpo": {"beta": 0.1},
        "altpo": {"beta": 0.1},
        "ipo": {"tau": 0.1},
        "kto_undesirable": {"beta": 0.1, "z_ref": 0.0, "weight": 1.0},
        "undial": {"beta": 10.0},
        "wga": {"beta": 1.0},
        "satimp": {"beta1": 5.0, "beta2": 1.0},
        "bst": {"mix": 0.2, "top_k": 20},
    }


@pytest.mark.parametrize("row", OBJECTIVES.values(), ids=lambda row: row.name)
def test_a_row_is_of_an_exported_function_and_keeps_the_contract(row: Objective) -> None:
    exported = {
        getattr(objectives, name) for name in objectives.__all__ if callable(getattr(objectives, name))
    }
    assert row.function in exported
    assert set(row.inputs) <= INPUTS[row.level, row.takes]
    assert all(isinstance(value, int | float) for value in row.defaults.values())
    assert row.function.__doc__
    if row.name not in {"rmu", "rmu_retain"}:  # their paper is their module's
        assert "arXiv" in row.function.__doc__
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.note = ""  # type: ignore[misc]


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        OBJECTIVES["mine"] = OBJECTIVES["npo"]  # type: ignore[index]
    with pytest.raises(TypeError):
        OBJECTIVES["npo"].defaults["beta"] = 1.0  # type: ignore[index]


def test_rows_are_found_under_their_own_names() -> None:
    assert all(name == row.name for name, row in OBJECTIVES.items())


def test_the_committed_page_is_what_the_code_generates() -> None:
    assert PAGE.read_text(encoding="utf-8") == document(), (
        "docs/objectives.md is out of date: python -m efface.adapters.objectives > docs/objectives.md"
    )
    assert all(f"| `{name}` |" in document() for name in OBJECTIVES)


def test_the_command_that_the_page_names_prints_it() -> None:
    command = [sys.executable, "-m", "efface.adapters.objectives"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout.decode("utf-8") == document()
