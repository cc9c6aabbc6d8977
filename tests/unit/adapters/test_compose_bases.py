"""Whether adapters are of one base: what their configs say, or what a registry knows of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import BASE, contents, plain

from efface.adapters import Part, compose, delta, read_adapter
from efface.adapters.compress import compress
from efface.adapters.errors import BaseMismatch, InvalidAdapter
from efface.adapters.overlap import overlaps

OURS, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
THEIRS: dict[str, Any] = {
    "base_model_name_or_path": "org/model",
    "revision": "main",
    "task_type": None,
    "fan_in_fan_out": True,
}


def folders(work: Path, first: dict[str, Any], second: dict[str, Any]) -> tuple[Path, Path]:
    """Two adapters whose configs say so."""
    one, two = (plain(seed=seed, extra=extra) for seed, extra in enumerate((first, second)))
    return one.write(work / "one"), two.write(work / "two")


def test_a_base_that_is_known_goes_before_the_names_that_authors_gave_it(tmp_path: Path) -> None:
    one, two = folders(tmp_path, {"base_model_name_or_path": OURS}, THEIRS)
    with pytest.raises(BaseMismatch, match=f"'{OURS}' .* and 'org/model' at revision main"):
        compose([Part(one), Part(two)], tmp_path / "out")
    made = compose([Part(one, base=OURS), Part(two, base=OURS)], tmp_path / "out")
    stacked = read_adapter(made.path)
    config = stacked.config
    assert (config.base_model_name_or_path, config.revision, config.task_type) == (OURS, None, "CAUSAL_LM")
    assert config.fan_in_fan_out  # as one of them says it; PEFT goes by the layer
    for name in stacked.modules:
        wanted = delta(read_adapter(one), name) + delta(read_adapter(two), name)
        torch.testing.assert_close(delta(stacked, name), wanted)
    again = compose([Part(two, base=OURS), Part(one, base=OURS)], tmp_path / "again")
    assert contents(again.path) == contents(made.path)
    (pair,) = overlaps([Part(one, base=OURS), Part(two, base=OURS)])
    assert {pair.first, pair.second} == {read_adapter(one).digest, read_adapter(two).digest}
    small = compress([Part(one, base=OURS), Part(two, base=OURS)], tmp_path / "small", rank=1)
    assert read_adapter(small.path).config.base_model_name_or_path == OURS


def test_knowing_the_base_changes_nothing_where_the_names_agree(tmp_path: Path) -> None:
    one, two = folders(tmp_path, {}, {})
    plainly = compose([Part(one), Part(two)], tmp_path / "plainly")
    known = compose([Part(one, base=OURS), Part(two, base=OURS)], tmp_path / "known")
    assert read_adapter(known.path).config.base_model_name_or_path == BASE
    assert contents(known.path) == contents(plainly.path)


def test_adapters_known_to_be_of_two_bases_are_refused_whatever_they_say(tmp_path: Path) -> None:
    one, two = folders(tmp_path, {}, {})
    with pytest.raises(BaseMismatch, match=f"'{OURS}' .* and '{OTHER}'"):
        compose([Part(one, base=OURS), Part(two, base=OTHER)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_digest_in_a_config_is_no_name_that_somebody_gave(tmp_path: Path) -> None:
    one, two = folders(tmp_path, {"base_model_name_or_path": OURS}, {"base_model_name_or_path": OTHER})
    with pytest.raises(BaseMismatch, match=f"two: expected an adapter for base {OURS}, got one for {OTHER}"):
        compose([Part(one, base=OURS), Part(two, base=OURS)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_part_that_says_its_base_goes_with_one_of_which_it_is_known(tmp_path: Path) -> None:
    one, two = folders(tmp_path, {"base_model_name_or_path": OURS}, THEIRS)
    made = compose([Part(one), Part(two, base=OURS)], tmp_path / "out")
    assert read_adapter(made.path).config.base_model_name_or_path == OURS
    with pytest.raises(BaseMismatch, match="and 'org/model' at revision main"):
        compose([Part(one, base=OURS), Part(two)], tmp_path / "again")


def test_adapters_for_two_tasks_are_refused(tmp_path: Path) -> None:
    one, two = folders(tmp_path, {}, {"task_type": "FEATURE_EXTRACTION"})
    with pytest.raises(InvalidAdapter, match=r"one task_type, got CAUSAL_LM in .* FEATURE_EXTRACTION in"):
        compose([Part(one), Part(two)], tmp_path / "out")
