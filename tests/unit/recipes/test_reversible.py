"""Reversibility: the verdict, and the base under every precision, sound and tampered with."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_kit import fill_lora, wide

from efface.adapters import attach, detach, load_base
from efface.adapters.lora import save
from efface.recipes.errors import RecipeError
from efface.recipes.reversible_base import base_findings, logits_digest, probe_batch, worn_findings
from efface.recipes.reversible_record import (
    PathFinding,
    Reversibility,
    compared,
    differing_files,
    listed,
)

DIGESTS = st.sampled_from([f"sha256:{c * 64}" for c in "abc"])
FILES = st.dictionaries(st.sampled_from("abcd"), DIGESTS)


def audit(*outcomes: str) -> Reversibility:
    findings = tuple(PathFinding("c", f"p{i}", outcome, "t") for i, outcome in enumerate(outcomes))  # type: ignore[arg-type]
    return Reversibility("prod", 1, "sha256:a", "sha256:b", "nf4", "2026-01-31T12:00:00Z", findings)


@given(st.lists(st.sampled_from(["passed", "failed", "refused"]), min_size=1))
def test_it_passes_only_where_something_passed_and_nothing_failed(outcomes: list[str]) -> None:
    assert (audit(*outcomes).verdict == "pass") == ("failed" not in outcomes and "passed" in outcomes)


def test_a_report_of_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="at least one finding"):
        audit()


@given(FILES, FILES)
def test_files_differ_where_and_only_where_they_do(expected: dict[str, str], found: dict[str, str]) -> None:
    said = differing_files(expected, found)
    assert (said == []) == (expected == found)
    wrong = {name for name in {*expected, *found} if expected.get(name) != found.get(name)}
    assert {text[0] for text in said} == wrong


@given(st.lists(st.text("xyz", min_size=1), min_size=1, max_size=9))
def test_long_lists_are_cut_and_counted(problems: list[str]) -> None:
    assert (f"and {len(problems) - 3} more" in listed(problems)) == (len(problems) > 3)


def test_a_comparison_names_both_sides() -> None:
    assert compared("c", "p", "a", "a", same="equal", then="x").outcome == "passed"
    failed = compared("c", "p", "a", "b", same="equal", then="Do it again.")
    assert (failed.outcome, failed.text) == ("failed", "expected a, got b. Do it again.")


@given(st.integers(2, 200_000), st.integers(1, 64) | st.none())
def test_the_probe_stays_in_the_vocabulary_and_the_context(vocabulary: int, longest: int | None) -> None:
    ids = probe_batch(vocabulary, longest)
    assert ids.dtype == torch.int64
    assert 0 <= int(ids.min()) <= int(ids.max()) < vocabulary
    assert ids.shape[1] <= (longest or 24)
    assert torch.equal(ids, probe_batch(vocabulary, longest))


class Fixed(torch.nn.Module):
    """A model with given logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, input_ids: torch.Tensor) -> "Fixed":
        return self


def test_logits_are_compared_bit_by_bit() -> None:
    ids = torch.zeros(1, 1, dtype=torch.int64)
    plain, nan = torch.tensor([[0.0, 1.0]]), torch.tensor([[float("nan"), 1.0]])
    assert logits_digest(Fixed(plain), ids) == logits_digest(Fixed(plain.clone()), ids)
    assert logits_digest(Fixed(nan), ids) == logits_digest(Fixed(nan.clone()), ids)
    assert logits_digest(Fixed(plain), ids) != logits_digest(Fixed(torch.tensor([[-0.0, 1.0]])), ids)
    assert logits_digest(Fixed(plain.nextafter(torch.tensor(2.0))), ids) != logits_digest(Fixed(plain), ids)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return wide(tiny_llama, tmp_path_factory.mktemp("wide") / "model")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    base = load_base(model, "fp32")
    peft = attach(base.model, rank=4)
    fill_lora(peft, 1)
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    save(peft, folder, base=base.fingerprint.digest)
    detach(peft)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4", "int8"])
def test_the_base_comes_back_bit_by_bit_at_every_precision(
    model: Path, adapter: Path, precision: str
) -> None:
    digest = load_base(model, "fp32").fingerprint.digest
    found = base_findings(model, digest, precision, adapter)
    assert [(one.check, one.path, one.outcome) for one in found if one.outcome != "passed"] == []
    assert sum(one.check == "base logits" for one in found) == 3
    assert all(f"at {precision}" in one.text for one in found if one.check == "base logits")


def test_a_weight_of_the_base_that_changes_while_it_runs_is_found(model: Path, adapter: Path) -> None:
    base = load_base(model, "fp32")
    weight = base.model.get_parameter("model.layers.0.mlp.up_proj.weight")
    runs = []

    def write(*_: object) -> None:
        runs.append(1)
        if len(runs) == 2:  # while the adapter is on
            weight.data[0, 0] += 1

    base.model.register_forward_hook(write)
    failed = {(one.check, one.path) for one in worn_findings(base, adapter) if one.outcome == "failed"}
    assert {("base weights", "adapter on"), ("base weights", "detached")} <= failed
    assert {("base logits", "disabled"), ("base logits", "detached")} <= failed
    assert ("probe", "adapter on") not in failed


def test_an_adapter_that_does_nothing_proves_nothing(model: Path, tmp_path: Path) -> None:
    base = load_base(model, "fp32")
    peft = attach(base.model, rank=4)
    save(peft, tmp_path / "empty", base=base.fingerprint.digest)
    detach(peft)
    found = {(one.check, one.path): one for one in worn_findings(base, tmp_path / "empty")}
    assert found["probe", "adapter on"].outcome == "failed"
    assert "cannot tell on from off" in found["probe", "adapter on"].text


def test_an_adapter_of_another_base_is_a_finding(model: Path, adapter: Path, tiny_llama: Path) -> None:
    digest = load_base(tiny_llama, "fp32").fingerprint.digest
    found = base_findings(tiny_llama, digest, "fp32", adapter)
    (failed,) = [one for one in found if one.outcome == "failed"]
    assert "expected a base whose" in failed.text


def test_of_the_bare_base_only_the_files_are_compared(model: Path) -> None:
    digest = load_base(model, "fp32").fingerprint.digest
    assert [one.outcome for one in base_findings(model, digest, "fp32", None)] == ["passed", "passed"]
    wrong = base_findings(model, "sha256:" + "0" * 64, "fp32", None)
    assert [one.outcome for one in wrong] == ["failed", "failed"]
    assert digest in wrong[0].text
