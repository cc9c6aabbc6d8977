"""Training on a tiny model that knows six facts: what is learnt, what is reported, and what is refused."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapter_files import contents
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kit import FORGET, PAD, RETAIN, encoded, fill_lora, full_logps, logits, wide
from peft import PeftModel

from efface.adapters.encode import Encoded, collate
from efface.adapters.errors import AdapterError, TrainingError
from efface.adapters.lora import attach, detach, load, save
from efface.adapters.model import Base, load_base, state_digest
from efface.adapters.reference import Reference, ReferenceCache, ask_reference
from efface.adapters.settings import Constraint, StopRules, TrainSettings
from efface.adapters.steps import Steps
from efface.adapters.trainer import TrainResult, train
from efface.adapters.watch import StepReport

BASE = "sha256:" + "00" * 32
# All rows in every step: what a step sees does not depend on the deal.
SETTINGS = TrainSettings(learning_rate=1e-2, steps=15, forget_batch=3, retain_batch=3)
OBJECTIVES = {
    "simnpo": {"objective": "simnpo", "parameters": {"beta": 2.5, "delta": 0.2}},
    "npo": {"objective": "npo", "parameters": {"beta": 0.3}},
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES)
every_retain_term = pytest.mark.parametrize("retain_term", ["nll", "kl"])

Rows = tuple[Encoded, ...]


@pytest.fixture(scope="module")
def forget(tiny_llama: Path) -> Rows:
    """The last row counts only its first token, as `focus` would have it."""
    first, second, third = encoded(tiny_llama, FORGET)
    return first, second, replace(third, counted=(True, *[False] * (len(third.answer) - 1)))


@pytest.fixture(scope="module")
def retain(tiny_llama: Path) -> Rows:
    first, second, third = encoded(tiny_llama, RETAIN)
    return first, replace(second, counted=(True, False, True)), third


def worn(folder: Path, quantization: str = "fp32", **options: object) -> PeftModel:
    return attach(load_base(folder, quantization).model, **({"rank": 4, "alpha": 8, "seed": 1} | options))  # type: ignore[arg-type]


def lora(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def probabilities(model: torch.nn.Module, rows: Rows) -> list[float]:
    batch = collate(rows, PAD)
    logps = full_logps(model, batch) * batch.answer_mask
    return (logps.sum(-1) / batch.answer_mask.sum(-1)).exp().tolist()


# --- what is learnt


@every_objective
@every_retain_term
def test_forget_answers_go_and_retain_answers_stay(
    known: Path, forget: Rows, retain: Rows, objective: str, retain_term: str
) -> None:
    model = worn(known)
    before, kept = probabilities(model, forget), probabilities(model, retain)
    assert min(before + kept) > 0.9
    chosen = replace(SETTINGS, retain_term=retain_term, **OBJECTIVES[objective])
    result = train(model, forget, retain, chosen, pad_id=PAD)
    assert max(probabilities(model, forget)) < 0.2
    assert min(probabilities(model, retain)) > 0.8
    assert result.steps[-1].forget_probability < 0.2 < 0.9 < result.steps[0].forget_probability
    assert not model.training


@every_objective
def test_two_runs_give_the_same_bytes_and_another_seed_others(
    known: Path, forget: Rows, retain: Rows, tmp_path: Path, objective: str
) -> None:
    runs: list[tuple[dict[str, bytes], tuple[StepReport, ...]]] = []
    for i, seed in enumerate((7, 7, 8)):
        torch.manual_seed(i)  # what happened before must not matter
        model = worn(known)
        chosen = replace(
            SETTINGS, steps=3, forget_batch=2, retain_batch=2, seed=seed, **OBJECTIVES[objective]
        )
        result = train(model, forget, retain, chosen, pad_id=PAD)
        save(model, tmp_path / str(i), base=BASE)
        runs.append((contents(tmp_path / str(i)), result.steps))
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[2][0]


@pytest.mark.parametrize("quantization", ["fp32", "bf16", "nf4"])
def test_the_base_is_untouched_and_the_saved_adapter_is_the_trained_one(
    known: Path, forget: Rows, retain: Rows, tmp_path: Path, quantization: str
) -> None:
    base = load_base(known, quantization)
    fresh, before = state_digest(base.model), logits(base.model)
    model = attach(base.model, rank=4, alpha=8)
    train(model, forget, retain, replace(SETTINGS, steps=3, retain_term="kl"), pad_id=PAD)
    trained = logits(model)
    save(model, tmp_path / "adapter", base=base.fingerprint.digest)
    assert state_digest(model) == fresh
    assert torch.equal(logits(detach(model)), before)
    assert state_digest(base.model) == fresh
    assert not torch.equal(trained, before)
    assert torch.equal(logits(load(load_base(known, quantization).model, tmp_path / "adapter")), trained)


def test_every_lora_matrix_learns(known: Path, forget: Rows, retain: Rows) -> None:
    model = worn(known)
    before = lora(model)
    train(model, forget, retain, replace(SETTINGS, steps=3), pad_id=PAD)
    after = lora(model)
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_activation_checkpointing_does_not_silence_a_run(known: Path, forget: Rows, retain: Rows) -> None:
    plain, checkpointed = worn(known), worn(known)
    checkpointed.get_base_model().activation_checkpointing_enable()  # type: ignore[operator]
    for model in (plain, checkpointed):
        train(model, forget, retain, replace(SETTINGS, steps=2), pad_id=PAD)
    ours, theirs = lora(plain), lora(checkpointed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- what is reported


def softplus(x: torch.Tensor) -> torch.Tensor:
    return (1 + x.exp()).log()


def forget_loss(model: torch.nn.Module, base: torch.nn.Module, rows: Rows, chosen: TrainSettings) -> float:
    batch = collate(rows, PAD)
    s, ref = ((full_logps(m, batch) * batch.answer_mask).sum(-1) for m in (model, base))
    per_row = s - ref if chosen.objective == "npo" else s / batch.answer_mask.sum(-1)
    beta, delta = chosen.parameters["beta"], chosen.parameters.get("delta", 0.0)
    return (2 / beta * softplus(beta * per_row + delta)).mean().item()


def retain_loss(model: torch.nn.Module, base: torch.nn.Module, rows: Rows, chosen: TrainSettings) -> float:
    batch = collate(rows, PAD)
    if chosen.retain_term == "nll":
        return -full_logps(model, batch)[batch.answer_mask].mean().item()
    with torch.no_grad():
        p, q = (
            m(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            .logits[:, :-1][batch.answer_mask[:, 1:]]
            .double()
            .log_softmax(-1)
            for m in (model, base)
        )
    return (q.exp() * (q - p)).sum(-1).mean().item()


@every_objective
@every_retain_term
def test_each_step_reports_the_losses_worked_out_by_hand_from_full_logits(
    known: Path, forget: Rows, retain: Rows, objective: str, retain_term: str
) -> None:
    """The second step's figures show that the reference stays the base while the model moves away."""
    chosen = replace(SETTINGS, gamma=0.7, alpha=1.9, retain_term=retain_term, **OBJECTIVES[objective])
    two = train(worn(known), forget, retain, replace(chosen, steps=2), pad_id=PAD).steps
    moved = worn(known)
    one = train(moved, forget, retain, replace(chosen, steps=1), pad_id=PAD).steps
    assert two[0] == one[0]  # the rate falls only from the second update on
    base = load_base(known, "fp32").model
    for report, model in zip(two, (base, moved), strict=True):
        expected_forget = forget_loss(model, base, forget, chosen)
        expected_retain = retain_loss(model, base, retain, chosen)
        close = {"rel": 1e-4, "abs": 1e-5}
        assert report.forget_loss == pytest.approx(expected_forget, **close)
        assert report.retain_loss == pytest.approx(expected_retain, **close)
        assert report.loss == pytest.approx(0.7 * report.forget_loss + 1.9 * report.retain_loss, rel=1e-5)
        shown = (report.forget_probability, report.retain_probability)
        means = [sum(values) / 3 for values in (probabilities(model, forget), probabilities(model, retain))]
        assert shown == pytest.approx(means, rel=1e-4)
    assert two[1].forget_loss != pytest.approx(two[0].forget_loss, rel=1e-2)


def test_reports_come_one_a_step_in_order_as_they_happen(known: Path, forget: Rows, retain: Rows) -> None:
    seen: list[StepReport] = []
    result = train(worn(known), forget, retain, replace(SETTINGS, steps=4), pad_id=PAD, on_step=seen.append)
    assert isinstance(result, TrainResult)
    assert tuple(seen) == result.steps
    assert [report.step for report in seen] == [1, 2, 3, 4]
    assert result.seconds > 0


# --- the reference policy


def asked(
    model: PeftModel, forget: Rows, retain: Rows, chosen: TrainSettings, cache: ReferenceCache | None = None
) -> Reference:
    return ask_reference(model, Steps(forget, retain, chosen), chosen, pad_id=PAD, cache=cache)


def listen(model: PeftModel) -> Counter[bool]:
    """Counts the decoder's forwards, by whether gradients were on."""
    forwards: Counter[bool] = Counter()
    decoder = model.get_base_model().model
    decoder.register_forward_pre_hook(lambda *_: forwards.update([torch.is_grad_enabled()]))  # type: ignore[operator]
    return forwards


def test_the_reference_is_the_base_whatever_the_adapter_is(known: Path, forget: Rows, retain: Rows) -> None:
    model = worn(known)
    fill_lora(model, seed=1, size=0.5)
    found = asked(model, forget, retain, replace(SETTINGS, objective="npo", retain_term="kl"))
    base = load_base(known, "fp32").model
    batch = collate(forget, PAD)
    expected = (full_logps(base, batch) * batch.answer_mask).sum(-1).tolist()
    assert [float(found.sums[row]) for row in forget] == pytest.approx(expected, abs=1e-4)
    assert probabilities(model, forget) != pytest.approx(probabilities(base, forget), rel=0.1)
    for row in retain:
        alone = collate([row], PAD)
        with torch.no_grad():
            hidden = base.model(input_ids=alone.input_ids).last_hidden_state[0, :-1][alone.answer_mask[0, 1:]]
        torch.testing.assert_close(found.hidden[row], hidden, rtol=0, atol=1e-4)
    for values in found.hidden.values():
        assert not values.requires_grad


def test_nothing_is_asked_that_no_loss_needs(known: Path, forget: Rows, retain: Rows) -> None:
    found = asked(worn(known), forget, retain, SETTINGS)
    assert (found.sums, found.hidden, found.layer) == ({}, {}, {})


def test_only_rows_that_a_step_sees_are_asked(known: Path, forget: Rows, retain: Rows) -> None:
    few = replace(SETTINGS, retain_term="kl", steps=1, retain_batch=1)
    assert len(asked(worn(known), forget, retain, few).hidden) == 1


def test_the_reference_is_asked_once_and_each_step_runs_the_model_once(
    known: Path, forget: Rows, retain: Rows
) -> None:
    model = worn(known)
    forwards = listen(model)
    chosen = replace(SETTINGS, objective="npo", parameters={"beta": 0.3}, retain_term="kl", steps=4)
    train(model, forget, retain, chosen, pad_id=PAD)
    assert forwards == {False: 2, True: 4}  # forget and retain rows once under no_grad, then the steps


def test_what_a_cache_holds_is_not_asked_again_and_changes_nothing(
    known: Path, forget: Rows, retain: Rows
) -> None:
    chosen = replace(SETTINGS, objective="npo", parameters={"beta": 0.3}, retain_term="kl", steps=2)
    expected = train(worn(known), forget, retain, chosen, pad_id=PAD).steps
    model, cache = worn(known), ReferenceCache("sha256:base")
    first = asked(model, forget, retain, chosen, cache)
    forwards = listen(model)
    again = asked(model, forget, retain, chosen, cache)
    assert again.hidden[retain[0]] is first.hidden[retain[0]]
    assert train(model, forget, retain, chosen, pad_id=PAD, cache=cache).steps == expected
    assert forwards == {True: 2}


def test_a_cache_has_a_limit(known: Path, forget: Rows, retain: Rows) -> None:
    cache = ReferenceCache("sha256:one", limit=100)
    chosen = replace(SETTINGS, retain_term="kl")
    for rows in (retain, retain[:2], retain[:1]):
        asked(worn(known), forget, rows, chosen, cache)
    assert len(cache.kept) == 1
    (kept,) = cache.kept.values()
    assert len(kept) == 1  # the newest


def test_a_cache_tells_rows_and_policies_apart(known: Path, forget: Rows, retain: Rows) -> None:
    chosen = replace(SETTINGS, objective="npo")
    one, other = ReferenceCache("sha256:one"), ReferenceCache("sha256:other")
    model = worn(known)
    for cache in (one, other):
        asked(model, forget, retain, chosen, cache)
    asked(model, forget[:2], retain, chosen, one)
    asked(model, (replace(forget[0], id="renamed"), *forget[1:]), retain, chosen, one)
    assert len(one.kept) == 2
    assert len(other.kept) == 1
    assert not one.kept.keys() & other.kept.keys()


def test_rows_that_share_an_id_keep_their_own_reference(known: Path, forget: Rows, retain: Rows) -> None:
    same = tuple(replace(row, id="same") for row in forget)
    chosen = replace(SETTINGS, objective="npo", parameters={"beta": 0.3}, steps=1)
    (report,) = train(worn(known), same, retain, chosen, pad_id=PAD).steps
    assert report.forget_loss == pytest.approx(2 / 0.3 * math.log(2), rel=1e-4)


def test_kl_compares_with_the_bases_head_even_when_the_head_is_adapted(
    tiny_llama: Path, tmp_path: Path, forget: Rows, retain: Rows
) -> None:
    untied = wide(tiny_llama, tmp_path / "untied", tied=False)
    model = worn(untied, targets=["lm_head"])
    chosen = replace(SETTINGS, retain_term="kl", steps=1)
    train(model, forget, retain, chosen, pad_id=PAD)
    expected = retain_loss(model, load_base(untied, "fp32").model, retain, chosen)
    assert expected > 1e-5
    (report,) = train(model, forget, retain, chosen, pad_id=PAD).steps
    assert report.retain_loss == pytest.approx(expected, rel=1e-3)


# --- the deal


@settings(deadline=None)
@given(
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_rows_are_dealt_in_rounds_that_hold_each_row_once(
    n_forget: int, n_retain: int, steps: int, forget_batch: int, retain_batch: int, seed: int
) -> None:
    forget, retain = (
        tuple(Encoded(f"{side}{i}", (1,), (2,)) for i in range(n))
        for side, n in (("f", n_forget), ("r", n_retain))
    )
    chosen = TrainSettings(
        steps=steps, forget_batch=forget_batch, retain_batch=retain_batch, seed=seed, length_buckets=False
    )
    dealt = Steps(forget, retain, chosen)
    hands = [dealt[i] for i in range(len(dealt))]
    assert len(hands) == steps
    for rows, size, sides in (
        (forget, forget_batch, [hand.forget for hand in hands]),
        (retain, retain_batch, [hand.retain for hand in hands]),
    ):
        assert {len(side) for side in sides} == {size}
        flat = [row for side in sides for row in side]
        rounds = [flat[i : i + len(rows)] for i in range(0, len(flat), len(rows))]
        assert all(set(full) == set(rows) for full in rounds[:-1])
        assert len(set(rounds[-1])) == len(rounds[-1])
    again = Steps(forget, retain, chosen)
    assert [again[i] for i in range(steps)] == hands


# --- what is refused

REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "objective": (
        {"objective": "simpno"},
        "unknown objective 'simpno': npo, simnpo,.* did you mean 'simnpo'?",
    ),
    "a retain term as objective": ({"objective": "retain_kl"}, "unknown objective 'retain_kl'"),
    "parameter": ({"parameters": {"betta": 1.0}}, "unknown parameter of simnpo 'betta': .* mean 'beta'?"),
    "retain term": ({"retain_term": "mse"}, "unknown retain term 'mse': nll, kl, hidden, none exist"),
    "optimizer": ({"optimizer": "sgd"}, "unknown optimizer 'sgd'"),
    "schedule": ({"schedule": "cosin"}, "unknown schedule 'cosin': .*did you mean 'cosine'?"),
    "no steps": ({"steps": 0}, r"expected at least 1 of steps \(got 0\)"),
    "no forget rows a step": ({"forget_batch": 0}, r"forget_batch \(got 0\)"),
    "no retain rows a step": ({"retain_batch": 0}, r"retain_batch \(got 0\)"),
    "rate": ({"learning_rate": math.nan}, "expected a positive, finite learning_rate, got nan"),
    "constraint of a KL": (
        {"constraint": Constraint(), "retain_term": "kl"},
        "expected retain_term nll, got kl",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_settings_are_refused_before_a_step(
    known: Path, forget: Rows, retain: Rows, changes: dict[str, object], message: str
) -> None:
    refused(worn(known), forget, retain, replace(SETTINGS, **changes), TrainingError, message)  # type: ignore[arg-type]


def test_empty_data_is_refused(known: Path, forget: Rows, retain: Rows) -> None:
    model = worn(known)
    refused(model, (), retain, SETTINGS, TrainingError, "expected forget and retain rows, got 0 and 3")
    refused(model, forget, (), SETTINGS, TrainingError, "expected forget and retain rows, got 3 and 0")


def test_a_budget_needs_rows_to_look_at(known: Path, forget: Rows) -> None:
    chosen = replace(SETTINGS, stop=StopRules(), alpha=0.0)
    refused(worn(known), forget, (), chosen, TrainingError, "a retain_drop budget needs retain rows")


def test_a_bad_beta_is_refused(known: Path, forget: Rows, retain: Rows) -> None:
    refused(worn(known), forget, retain, replace(SETTINGS, parameters={"beta": 0.0}), TrainingError, "beta")


def refused(
    model: PeftModel,
    forget: Rows,
    retain: Rows,
    chosen: TrainSettings,
    error: type[AdapterError],
    message: str,
) -> None:
    before, steps = lora(model), list[StepReport]()
    with pytest.raises(error, match=message):
        train(model, forget, retain, chosen, pad_id=PAD, on_step=steps.append)
    assert steps == []
    assert all(torch.equal(before[name], value) for name, value in lora(model).items())


def test_a_rate_that_explodes_is_stopped_naming_step_and_rows(
    known: Path, forget: Rows, retain: Rows
) -> None:
    model, seen = worn(known), list[StepReport]()
    fresh = state_digest(model)
    chosen = replace(SETTINGS, learning_rate=1e30)
    with pytest.raises(
        TrainingError, match=r"the loss is (nan|inf) at step 2: lower the learning rate"
    ) as caught:
        train(model, forget, retain, chosen, pad_id=PAD, on_step=seen.append)
    assert all(row.id in str(caught.value) for row in (*forget, *retain))
    assert [report.step for report in seen] == [1]
    assert state_digest(model) == fresh
    assert not model.training


def infinite_adapter(model: PeftModel) -> None:
    next(p for name, p in model.named_parameters() if "lora_B" in name).data.fill_(math.inf)


def broken_base(model: PeftModel) -> None:
    model.get_submodule("base_model.model.model.norm").weight.data[0] = math.nan  # type: ignore[union-attr,index]


@pytest.mark.parametrize("spoil", [infinite_adapter, broken_base])
def test_weights_that_are_not_finite_stop_the_first_step(
    known: Path, forget: Rows, retain: Rows, spoil: Callable[[PeftModel], None]
) -> None:
    model = worn(known)
    spoil(model)
    refused_at_first = replace(SETTINGS, forget_batch=1, retain_batch=1)
    with pytest.raises(TrainingError, match=r"at step 1: .*look at f\d, r\d$"):
        train(model, forget, retain, refused_at_first, pad_id=PAD)


def test_a_run_whose_gradients_do_not_reach_the_adapter_stops_at_once(
    known: Path, forget: Rows, retain: Rows
) -> None:
    model, seen = worn(known), list[StepReport]()
    before = lora(model)
    silent = replace(SETTINGS, gamma=0.0, alpha=0.0)
    with pytest.raises(TrainingError, match="no gradient reached the LoRA weights in the first step"):
        train(model, forget, retain, silent, pad_id=PAD, on_step=seen.append)
    assert [report.step for report in seen] == []
    assert all(torch.equal(before[name], value) for name, value in lora(model).items())


def test_one_term_alone_is_enough(known: Path, forget: Rows, retain: Rows) -> None:
    base: Base = load_base(known, "fp32")
    model = attach(base.model, rank=4, alpha=8)
    train(model, forget, retain, replace(SETTINGS, alpha=0.0, steps=10), pad_id=PAD)
    assert max(probabilities(model, forget)) < 0.2
    detach(model)
    model = attach(base.model, rank=4, alpha=8)
    train(model, forget, retain, replace(SETTINGS, gamma=0.0, steps=10), pad_id=PAD)
    assert min(probabilities(model, forget + retain)) > 0.9
