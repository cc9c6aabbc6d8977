"""Activation patching against a decoder run by hand, one row and one layer at a time; the score by its formula."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_kit import FORGET, RETAIN, encoded, fill_lora, logits, taught, wide
from transformers import GPT2Config, GPT2LMHeadModel

from efface.adapters.encode import Encoded, focus
from efface.adapters.lora import attach, disabled
from efface.adapters.model import Base, load_base
from efface.audits.depth import depth_score, unlearning_depth
from efface.audits.errors import AuditError, MetricError, MissingReference
from efface.audits.forced import Method
from efface.audits.patching import Patched, patched_drops

METHOD = Method(score_batch=3)


@pytest.fixture(scope="module")
def base(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(taught(tiny_llama, tmp_path_factory.mktemp("patching") / "taught"), "fp32")


@pytest.fixture(scope="module")
def worn(base: Base) -> Any:
    model = attach(load_base(base.path, "fp32").model, rank=4)
    fill_lora(model, seed=3, size=0.18)
    return model


@pytest.fixture(scope="module")
def rows(base: Base) -> tuple[Encoded, ...]:
    plain = encoded(base.path, FORGET + RETAIN, end=True)
    return (*plain, focus(base.tokenizer, encoded(base.path, FORGET[2:])[0], FORGET[2]))


# --- by hand


def positions(row: Encoded) -> list[int]:
    """Where the counted answer tokens are predicted."""
    counted = row.counted or (True,) * len(row.answer)
    return [len(row.prompt) + i - 1 for i, yes in enumerate(counted) if yes]


def by_hand(causal: Any, row: Encoded, patch: dict[int, torch.Tensor]) -> tuple[list[torch.Tensor], float]:
    """States after each layer at the answer positions, and the mean log-probability of the counted tokens, with the
    states of the layers in ``patch`` put in."""
    ids, where, decoder = torch.tensor([row.prompt + row.answer]), positions(row), causal.get_decoder()
    t = ids.shape[1]
    rope = decoder.rotary_emb(decoder.embed_tokens(ids), torch.arange(t)[None])
    mask = torch.full((t, t), -math.inf).triu(1)[None, None]
    hidden, seen = decoder.embed_tokens(ids), []
    with torch.no_grad():
        for i, layer in enumerate(decoder.layers):
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rope)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            if i in patch:
                hidden = hidden.clone()
                hidden[0, where] = patch[i]
            seen.append(hidden[0, where].clone())
        every = causal.get_output_embeddings()(decoder.norm(hidden))[0].double().log_softmax(-1)
    return seen, float(torch.stack([every[p, ids[0, p + 1]] for p in where]).mean())


def expected(target: Any, states: list[torch.Tensor], row: Encoded) -> list[float]:
    plain = by_hand(target, row, {})[1]
    return [plain - by_hand(target, row, {layer: states[layer]})[1] for layer in range(len(states))]


def test_drops_are_those_of_a_decoder_run_by_hand(base: Base, worn: Any, rows: tuple[Encoded, ...]) -> None:
    for row, found in zip(rows, patched_drops(worn, base.tokenizer, rows, METHOD), strict=True):
        states = by_hand(worn.get_base_model(), row, {})[0]
        assert found.drops == pytest.approx(expected(base.model, states, row), abs=1e-5)
        assert found.target == pytest.approx(by_hand(base.model, row, {})[1], abs=1e-5)
        assert (found.id, found.layers) == (row.id, (0, 1))
        assert max(map(abs, found.drops)) > 0.05, "the adapter changes something, or equality says nothing"


def test_the_withheld_source_is_the_target_that_was_not_asked(
    base: Base, worn: Any, rows: tuple[Encoded, ...]
) -> None:
    for row, found in zip(
        rows, patched_drops(worn, base.tokenizer, rows, METHOD, source="withheld"), strict=True
    ):
        short = replace(row, prompt=(row.prompt[0], row.prompt[-1]))
        assert found.drops == pytest.approx(
            expected(base.model, by_hand(base.model, short, {})[0], row), abs=1e-5
        )


def test_the_last_layer_is_the_unlearned_models_own_answer(
    base: Base, worn: Any, rows: tuple[Encoded, ...]
) -> None:
    """Nothing is left that could find it again: the drop is that of the two models' log-probabilities."""
    for row, found in zip(rows, patched_drops(worn, base.tokenizer, rows, METHOD), strict=True):
        own = by_hand(worn.get_base_model(), row, {})[1]
        assert found.drops[-1] == pytest.approx(found.target - own, abs=1e-5)


# --- exactness


def test_an_adapter_of_zeros_changes_nothing_at_any_layer(base: Base, rows: tuple[Encoded, ...]) -> None:
    fresh = attach(load_base(base.path, "fp32").model, rank=4)
    assert all(set(row.drops) == {0.0} for row in patched_drops(fresh, base.tokenizer, rows, METHOD))


def test_an_adapter_that_is_off_changes_nothing_and_stays_off(base: Base, rows: tuple[Encoded, ...]) -> None:
    model: Any = attach(load_base(base.path, "fp32").model, rank=4)
    fill_lora(model, seed=3, size=0.18)
    model.base_model.disable_adapter_layers()
    assert all(set(row.drops) == {0.0} for row in patched_drops(model, base.tokenizer, rows, METHOD))
    assert torch.equal(logits(model), logits(base.model))


def test_a_model_patched_with_itself_changes_nothing(base: Base, rows: tuple[Encoded, ...]) -> None:
    found = patched_drops(base.model, base.tokenizer, rows, METHOD, source=base)
    assert all(set(row.drops) == {0.0} for row in found)


def test_quantized_bases_are_exact_too(tiny_llama: Path, tmp_path: Path) -> None:
    base = load_base(wide(tiny_llama, tmp_path / "wide"), "nf4")
    rows = encoded(base.path, FORGET)
    fresh = attach(base.model, rank=4)
    assert all(set(row.drops) == {0.0} for row in patched_drops(fresh, base.tokenizer, rows, METHOD))


def test_an_unlearned_checkpoint_is_the_same_source_as_its_adapter(
    base: Base, worn: Any, rows: tuple[Encoded, ...]
) -> None:
    checkpoint = replace(base, model=worn.get_base_model())
    found = patched_drops(base.model, base.tokenizer, rows, METHOD, source=checkpoint)
    assert found == patched_drops(worn, base.tokenizer, rows, METHOD)


def same(one: list[Patched], other: list[Patched]) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a.id, a.target) == (b.id, pytest.approx(b.target, abs=1e-5))
        assert a.drops == pytest.approx(b.drops, abs=1e-5)


@pytest.mark.parametrize("batch", [1, 64])
def test_batches_and_order_do_not_matter(
    base: Base, worn: Any, rows: tuple[Encoded, ...], batch: int
) -> None:
    other = patched_drops(worn, base.tokenizer, rows[::-1], replace(METHOD, score_batch=batch))[::-1]
    same(patched_drops(worn, base.tokenizer, rows, METHOD), other)


def test_some_layers_are_those_layers_of_all(base: Base, worn: Any, rows: tuple[Encoded, ...]) -> None:
    every = patched_drops(worn, base.tokenizer, rows, METHOD)
    last = patched_drops(worn, base.tokenizer, rows, METHOD, layers=[1])
    assert [(row.layers, row.drops) for row in last] == [((1,), row.drops[1:]) for row in every]


def test_nothing_is_left_behind(base: Base, worn: Any, rows: tuple[Encoded, ...]) -> None:
    before = logits(worn)
    patched_drops(worn, base.tokenizer, rows, METHOD)
    patched_drops(worn, base.tokenizer, rows, METHOD, source="withheld")
    assert torch.equal(logits(worn), before)
    with disabled(worn):
        assert torch.equal(logits(worn), logits(base.model))
    assert not any(layer._forward_hooks for layer in worn.get_base_model().get_decoder().layers)


# --- what is refused


def test_no_adapter_says_how_to_get_a_source(base: Base, rows: tuple[Encoded, ...]) -> None:
    with pytest.raises(MissingReference, match=r"source=load_base\(FOLDER, PRECISION\)"):
        patched_drops(base.model, base.tokenizer, rows, METHOD)


@pytest.mark.parametrize("layers", [[], [2], [-1], [0, 0]])
def test_layers_that_are_not_there_are_refused(
    base: Base, worn: Any, rows: tuple[Encoded, ...], layers: list[int]
) -> None:
    with pytest.raises(AuditError, match="distinct layers from 0 to 1"):
        patched_drops(worn, base.tokenizer, rows, METHOD, layers=layers)


def test_another_architecture_is_refused(base: Base, rows: tuple[Encoded, ...]) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(AuditError, match=r"list of layers.*GPT2LMHeadModel has none"):
        patched_drops(model, base.tokenizer, rows, METHOD, source=base)


def test_sources_that_do_not_fit_are_refused(
    tiny_llama: Path, tmp_path: Path, base: Base, worn: Any, rows: tuple[Encoded, ...]
) -> None:
    wider = load_base(wide(tiny_llama, tmp_path / "wide"), "bf16")
    with pytest.raises(AuditError, match="2 layers of width 32, got 2 of 64"):
        patched_drops(worn, base.tokenizer, rows, METHOD, source=wider)
    other = load_base(base.path, "fp32")
    other.tokenizer.add_tokens(["zyzzyva"])
    with pytest.raises(AuditError, match="another vocabulary"):
        patched_drops(worn, base.tokenizer, rows, METHOD, source=other)


def test_states_that_are_not_finite_name_the_row(base: Base, rows: tuple[Encoded, ...]) -> None:
    model: Any = attach(load_base(base.path, "fp32").model, rank=4)
    fill_lora(model, seed=3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(math.nan)
    with pytest.raises(AuditError, match=r"^row 'f0' has log-probabilities that are not finite"):
        patched_drops(model, base.tokenizer, rows, METHOD)
    assert torch.isfinite(logits(base.model)).all()


# --- the score


@pytest.mark.parametrize(
    ("drops", "baseline", "score"),
    [
        ([0.0, 0.0, 0.0], [0.01, 1.0, 2.0], 0.0),  # all of it still there
        ([0.01, 1.0, 2.0], [0.01, 1.0, 2.0], 1.0),  # as absent as in the baseline
        ([9.0, 0.0, 9.0], [0.01, 1.0, 2.0], 2 / 3),  # no layer counts more than its gap, none without one
        ([-1.0, 0.5, -1.0], [0.01, 1.0, 2.0], 1 / 6),  # helping is not less than nothing
        ([0.5], [1.0], 0.5),
    ],
)
def test_score_by_hand(drops: list[float], baseline: list[float], score: float) -> None:
    assert depth_score(drops, baseline) == pytest.approx(score)


NATS = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=12)


@given(NATS.filter(lambda pairs: any(b > 0.05 for _, b in pairs)))
def test_score_is_the_papers_formula(pairs: list[tuple[float, float]]) -> None:
    gaps = [(d, b) for d, b in pairs if b > 0.05]
    formula = sum(b * min(max(d / b, 0.0), 1.0) for d, b in gaps) / sum(b for _, b in gaps)
    drops, baseline = zip(*pairs, strict=True)
    assert depth_score(drops, baseline) == pytest.approx(formula)
    assert 0.0 <= depth_score(drops, baseline) <= 1.0
    assert depth_score(baseline, baseline) == pytest.approx(1.0)


def test_rows_without_a_gap_are_counted_and_left_out() -> None:
    found = unlearning_depth([[0.5, 2.0], [3.0, 3.0], [0.0, 0.0]], [[1.0, 2.0], [0.0, 0.04], [0.0, 1.0]])
    assert (found.n, found.skipped) == (2, 1)
    assert found.score == pytest.approx((2.5 / 3 + 0.0) / 2)
    assert found.drops == pytest.approx((0.25, 1.0))
    assert found.baseline == pytest.approx((0.5, 1.5))
    assert 0.0 <= found.low <= found.score <= found.high <= 1.0


def test_a_taught_model_knows_more_than_one_that_was_not_asked(
    base: Base, worn: Any, rows: tuple[Encoded, ...]
) -> None:
    """The whole way: the baseline without a retain-only model finds gaps; zeros score 0, forgetting scores above."""
    gaps = [row.drops for row in patched_drops(worn, base.tokenizer, rows, METHOD, source="withheld")]
    worn_off = unlearning_depth(
        [row.drops for row in patched_drops(worn, base.tokenizer, rows, METHOD)], gaps
    )
    assert worn_off.n > 0
    assert 0.0 < worn_off.score <= 1.0
    assert unlearning_depth(np.zeros_like(gaps), gaps).score == 0.0


def test_a_baseline_that_is_not_there_says_how_to_get_one() -> None:
    with pytest.raises(MissingReference, match=r"source=load_base\(RETAIN_ONLY_MODEL\).*source='withheld'"):
        unlearning_depth([[1.0]], None)


@pytest.mark.parametrize(
    ("drops", "baseline"),
    [
        ([], []),
        ([[]], [[]]),
        ([[1.0]], [[1.0, 2.0]]),
        ([1.0], [1.0]),
        ([[math.nan]], [[1.0]]),
        ([[1.0]], [[math.inf]]),
    ],
)
def test_drops_that_are_none_are_refused(drops, baseline) -> None:
    with pytest.raises(MetricError, match="expected"):
        unlearning_depth(drops, baseline)


def test_nothing_to_forget_is_refused() -> None:
    with pytest.raises(MetricError, match="nothing of this answer was there"):
        depth_score([1.0], [0.05])
    with pytest.raises(MetricError, match="at least one row"):
        unlearning_depth([[1.0]], [[0.0]])
    with pytest.raises(MetricError, match="threshold >= 0"):
        depth_score([1.0], [1.0], threshold=-1.0)
