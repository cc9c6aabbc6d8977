"""One pass for every figure: two models at once, against each alone and against all logits in float64."""

import math
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_kit import FORGET, RETAIN, encoded, fill_lora, logits, taught, wide

from efface.adapters.encode import Encoded, focus
from efface.adapters.lora import attach, disabled
from efface.adapters.model import Base, load_base
from efface.audits.errors import AuditError, MissingReference
from efface.audits.forced import Method, Model, Paired, paired, teacher_forced

METHOD = Method(score_batch=3)


@pytest.fixture(scope="module")
def base(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(taught(tiny_llama, tmp_path_factory.mktemp("forced") / "taught"), "fp32")


@pytest.fixture(scope="module")
def worn(base: Base) -> Model:
    model = attach(load_base(base.path, "fp32").model, rank=4)
    fill_lora(model, seed=3, size=0.18)
    return model


@pytest.fixture(scope="module")
def rows(base: Base) -> tuple[Encoded, ...]:
    return encoded(base.path, FORGET + RETAIN, end=True)


def distributions(model: Model, row: Encoded) -> torch.Tensor:
    """log p of every token at the answer positions, float64 [T, V]."""
    whole = logits(model, torch.tensor([row.prompt + row.answer]))[0].double()
    return whole[len(row.prompt) - 1 : -1].log_softmax(-1)


def close(one: Paired, other: Paired) -> None:
    for a, b in zip(
        (*astuple(one.before), *astuple(one.after)),
        (*astuple(other.before), *astuple(other.after)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(one.kl, other.kl, atol=1e-5)


def test_both_halves_and_the_divergence_are_what_all_logits_give(
    base: Base, worn: Model, rows: tuple[Encoded, ...]
) -> None:
    for row, found in zip(rows, paired(worn, base.tokenizer, rows, METHOD), strict=True):
        old, new = distributions(base.model, row), distributions(worn, row)
        for scored, every in ((found.before, old), (found.after, new)):
            chosen = every[torch.arange(len(row.answer)), list(row.answer)]
            mean = (every.exp() * every).sum(-1)
            np.testing.assert_allclose(scored.logps, chosen, atol=1e-5)
            np.testing.assert_array_equal(scored.hits, every.argmax(-1) == torch.tensor(row.answer))
            np.testing.assert_allclose(scored.means, mean, atol=1e-5)
            np.testing.assert_allclose(
                scored.variances, (every.exp() * every**2).sum(-1) - mean**2, atol=1e-4
            )
        np.testing.assert_allclose(found.kl, (old.exp() * (old - new)).sum(-1), atol=1e-5)
        assert found.kl.max() > 0.01, "the adapter changes something, or equality says nothing"


def test_each_half_is_that_models_own_pass(base: Base, worn: Model, rows: tuple[Encoded, ...]) -> None:
    found = paired(worn, base.tokenizer, rows, METHOD)
    after = teacher_forced(worn, base.tokenizer, rows, METHOD)
    with disabled(worn):
        before = teacher_forced(worn, base.tokenizer, rows, METHOD)
    for pair, old, new in zip(found, before, after, strict=True):
        for one, other in ((pair.before, old), (pair.after, new)):
            assert all(np.array_equal(a, b) for a, b in zip(astuple(one), astuple(other), strict=True))


def test_another_model_as_reference_is_the_disabled_adapter(
    base: Base, worn: Model, rows: tuple[Encoded, ...]
) -> None:
    switched = paired(worn, base.tokenizer, rows, METHOD)
    loaded = paired(worn, base.tokenizer, rows, METHOD, reference=base)
    for one, other in zip(switched, loaded, strict=True):
        close(one, other)


def test_a_model_has_no_distance_to_itself(base: Base, rows: tuple[Encoded, ...]) -> None:
    for pair in paired(base.model, base.tokenizer, rows, METHOD, reference=base):
        assert not pair.kl.any()
        assert np.array_equal(pair.before.logps, pair.after.logps)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_batches_and_order_do_not_matter(
    base: Base, worn: Model, rows: tuple[Encoded, ...], batch: int
) -> None:
    found = paired(worn, base.tokenizer, rows, METHOD)
    other = paired(worn, base.tokenizer, rows[::-1], replace(METHOD, score_batch=batch))[::-1]
    for one, two in zip(found, other, strict=True):
        close(one, two)


def test_only_counted_tokens_are_scored(base: Base, rows: tuple[Encoded, ...]) -> None:
    keyed = focus(base.tokenizer, encoded(base.path, FORGET[2:])[0], FORGET[2])
    (whole,), (some,) = (teacher_forced(base.model, base.tokenizer, [r], METHOD) for r in (rows[2], keyed))
    counted = np.array([*keyed.counted, False])  # rows[2] has its end too
    assert 0 < counted.sum() < len(counted)
    np.testing.assert_allclose(some.logps, whole.logps[counted], atol=1e-6)


def test_logits_of_minus_infinity_are_tokens_that_cannot_come(base: Base, rows: tuple[Encoded, ...]) -> None:
    """A vocabulary padded with tokens that are masked out has moments all the same."""
    head = base.model.get_output_embeddings()
    unused = 3  # in no answer
    assert all(unused not in row.answer for row in rows)
    hook = head.register_forward_hook(
        lambda _m, _i, out: out.index_fill(-1, torch.tensor([unused]), -math.inf)
    )
    try:
        found = paired(base.model, base.tokenizer, rows, METHOD, reference=base)
    finally:
        hook.remove()
    assert all(np.isfinite(pair.after.variances).all() and not pair.kl.any() for pair in found)


def test_no_adapter_and_no_reference_says_how_to_get_one(base: Base, rows: tuple[Encoded, ...]) -> None:
    with pytest.raises(MissingReference, match=r"reference=load_base\(FOLDER, PRECISION\)"):
        paired(base.model, base.tokenizer, rows, METHOD)


def test_a_reference_with_another_tokenizer_is_refused(
    base: Base, worn: Model, rows: tuple[Encoded, ...]
) -> None:
    other = load_base(base.path, "fp32")
    other.tokenizer.add_tokens(["zyzzyva"])
    with pytest.raises(AuditError, match=r"another vocabulary.*same family"):
        paired(worn, base.tokenizer, rows, METHOD, reference=other)


def test_a_broken_reference_names_the_row(tiny_llama: Path, tmp_path: Path, worn: Model, base: Base) -> None:
    broken = load_base(wide(tiny_llama, tmp_path / "untied", tied=False), "fp32")
    token = broken.tokenizer.convert_tokens_to_ids("rowling")
    broken.model.get_input_embeddings().weight.data[token] = math.nan  # type: ignore[index]
    rows = encoded(base.path, FORGET + RETAIN)
    with pytest.raises(AuditError, match=r"^row 'r1' has log-probabilities that are not finite"):
        paired(worn, base.tokenizer, rows, METHOD, reference=broken)
