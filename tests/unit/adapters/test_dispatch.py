"""The trainer gives every objective the tensors that it names, whatever else is in the batch and however it is cut."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_kit import FORGET, PAD, encoded, fill_lora, full_logps
from peft import PeftModel
from torch import Tensor

from efface.adapters.encode import Encoded, Item, collate
from efface.adapters.errors import TrainingError
from efface.adapters.lora import attach, save
from efface.adapters.model import load_base
from efface.adapters.objectives import OBJECTIVES, control_vector, retain_nll
from efface.adapters.settings import FORGET_OBJECTIVES, Constraint, TrainSettings
from efface.adapters.steps import Steps
from efface.adapters.trainer import train

Rows = tuple[Encoded, ...]
# Rates at which each objective moves the tiny model and does not blow up.
RATE = {"grad_ascent": 2e-3, "grad_diff": 2e-3, "bst": 2e-3, "pdu": 5e-3, "rmu": 3e-2, "idk_nll": 3e-3}
SETTINGS = TrainSettings(
    learning_rate=1e-2, steps=15, forget_batch=3, retain_batch=3, layer=0, control_scale=8.0
)
every_objective = pytest.mark.parametrize("objective", FORGET_OBJECTIVES)
OTHERS = ("a city", "the play", "paris the capital")


@pytest.fixture(scope="module")
def forget(tiny_llama: Path) -> Rows:
    first, second, third = encoded(tiny_llama, FORGET)
    return first, second, replace(third, counted=(True, True, *[False] * (len(third.answer) - 2)))


@pytest.fixture(scope="module")
def alternates(tiny_llama: Path, forget: Rows) -> dict[Encoded, Rows]:
    items = [
        tuple(Item(f"{item.id}/{k}", item.prompt, text) for k, text in enumerate(OTHERS)) for item in FORGET
    ]
    return {row: encoded(tiny_llama, others) for row, others in zip(forget, items, strict=True)}


def settings(objective: str, **changes: object) -> TrainSettings:
    chosen = {"objective": objective, "learning_rate": RATE.get(objective, 1e-2)}
    if OBJECTIVES[objective].alpha == 0 and objective != "undial":
        chosen["alpha"] = 0.0
    if objective == "rmu":
        chosen["retain_term"] = "hidden"
    if objective == "ipo":
        chosen["parameters"] = {"tau": 0.02}  # its margin is 1/(2 tau)
    return replace(SETTINGS, **(chosen | changes))  # type: ignore[arg-type]


def worn(folder: Path, **options: object) -> PeftModel:
    return attach(load_base(folder, "fp32").model, **({"rank": 4, "alpha": 8, "seed": 1} | options))  # type: ignore[arg-type]


def lora(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".default." in name}


def probability(model: torch.nn.Module, rows: Rows) -> float:
    batch = collate(rows, PAD)
    logps = full_logps(model, batch) * batch.answer_mask
    return float((logps.sum(-1) / batch.answer_mask.sum(-1)).exp().mean())


# --- every objective


@every_objective
def test_every_objective_moves_the_forget_answers(
    known: Path, forget: Rows, retain: Rows, alternates: dict[Encoded, Rows], objective: str
) -> None:
    model = worn(known)
    before = probability(model, forget)
    train(model, forget, retain, settings(objective), pad_id=PAD, alternates=alternates)
    assert probability(model, forget) < 0.75 * before


def sums(model: torch.nn.Module, rows: Rows) -> Tensor:
    batch = collate(rows, PAD)
    return (full_logps(model, batch) * batch.answer_mask).sum(-1)


def tensors(model: torch.nn.Module, base: torch.nn.Module, rows: Rows, others: Rows, objective: str) -> dict:
    """Every tensor that an objective can name, from plain forwards without padding, row by row, in float64."""
    found: dict[str, Tensor] = {}
    by_row = OBJECTIVES[objective].level == "sequence"
    for prefix, group in (("", rows), ("alternate_", others)):
        batch = collate(group, PAD)
        logps = full_logps(model, batch)
        found[f"{prefix}logps"] = (logps * batch.answer_mask).sum(-1) if by_row else logps
        found[f"{prefix}mask"] = batch.answer_mask
        found[f"ref_{prefix}logps"] = sums(base, group)
    found["lengths"] = collate(rows, PAD).answer_mask.sum(-1)
    shape = (len(rows), -1) if objective == "altpo" else (-1,)
    for name in ("alternate_logps", "ref_alternate_logps") if by_row else ():
        found[name] = found[name].reshape(shape)
    parts: dict[str, list[Tensor]] = {"logits": [], "ref_logits": [], "targets": [], "hidden": []}
    for row in rows:
        one = collate([row], PAD)
        where = one.answer_mask[0, 1:]
        with torch.no_grad():
            out = model(input_ids=one.input_ids, output_hidden_states=True)
            ref = base(input_ids=one.input_ids).logits
        parts["logits"].append(out.logits[0, :-1][where].double())
        parts["ref_logits"].append(ref[0, :-1][where].double())
        parts["hidden"].append(out.hidden_states[1][0, :-1][where].double())  # [0]: the embeddings
        parts["targets"].append(one.input_ids[0, 1:][where])
    found |= {name: torch.cat(values) for name, values in parts.items()}
    found["control"] = control_vector(found["hidden"].shape[-1], seed=0, scale=8.0).double()
    return found


@every_objective
def test_the_forget_loss_is_the_function_of_tensors_from_plain_forwards(
    known: Path, forget: Rows, retain: Rows, alternates: dict[Encoded, Rows], objective: str
) -> None:
    """At an adapter away from the base, so that the model and its reference differ."""
    model = worn(known)
    fill_lora(model, seed=3, size=0.2)
    chosen = settings(objective, steps=1, learning_rate=1e-9, alternates=2 if objective == "altpo" else 1)
    steps = Steps(forget, retain, chosen, alternates if chosen.needs_alternates else None)
    step = steps[0]
    base = load_base(known, "fp32").model
    names = OBJECTIVES[objective].inputs
    others = step.alternates or forget
    all_tensors = tensors(model, base, step.forget, others, objective)
    expected = OBJECTIVES[objective].function(*(all_tensors[name] for name in names), **chosen.parameters)
    (report,) = train(model, forget, retain, chosen, pad_id=PAD, alternates=alternates).steps
    assert report.forget_loss == pytest.approx(float(expected), rel=2e-4, abs=1e-5)


@every_objective
def test_small_batches_accumulated_are_one_large_batch(
    known: Path, forget: Rows, retain: Rows, alternates: dict[Encoded, Rows], objective: str
) -> None:
    """Also where the loss is a mean over tokens and the rows differ in length."""
    found = []
    for size, accumulation in ((3, 1), (1, 3)):
        model = worn(known)
        chosen = settings(
            objective,
            steps=3,
            forget_batch=size,
            retain_batch=size,
            accumulation=accumulation,
            length_buckets=False,
        )
        result = train(model, forget, retain, chosen, pad_id=PAD, alternates=alternates)
        found.append((lora(model), result.steps))
    (large, at_once), (small, in_parts) = found
    for ours, theirs in zip(at_once, in_parts, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-3, abs=1e-5)
        assert ours.retain_loss == pytest.approx(theirs.retain_loss, rel=1e-3, abs=1e-5)
    for name, value in large.items():
        torch.testing.assert_close(small[name], value, rtol=0, atol=2e-3)


@every_objective
def test_activation_checkpointing_changes_no_bit(
    known: Path, forget: Rows, retain: Rows, alternates: dict[Encoded, Rows], objective: str
) -> None:
    found = []
    for checkpointing in (False, True):
        model = worn(known)
        chosen = settings(objective, steps=2, gradient_checkpointing=checkpointing)
        train(model, forget, retain, chosen, pad_id=PAD, alternates=alternates)
        found.append(lora(model))
        base = model.get_base_model()
        assert not any(getattr(module, "gradient_checkpointing", False) for module in base.modules())
    plain, recomputed = found
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


# --- alternates


def test_each_row_meets_its_alternates_in_turn(
    forget: Rows, retain: Rows, alternates: dict[Encoded, Rows]
) -> None:
    steps = Steps(forget, retain, settings("dpo", steps=4), alternates)
    met: dict[Encoded, list[Encoded]] = {row: [] for row in forget}
    for i in range(4):
        for row, other in zip(steps[i].forget, steps[i].alternates, strict=True):
            met[row].append(other)
    for row in forget:
        first, second, third = alternates[row]
        assert met[row] == [first, second, third, first]


def test_altpo_meets_several_at_once(forget: Rows, retain: Rows, alternates: dict[Encoded, Rows]) -> None:
    steps = Steps(forget, retain, settings("altpo", steps=2, alternates=2), alternates)
    one, two = steps[0], steps[1]
    for step, places in ((one, (0, 1)), (two, (2, 0))):
        expected = [alternates[row][place] for row in step.forget for place in places]
        assert list(step.alternates) == expected


@pytest.mark.parametrize("objective", ["dpo", "altpo", "ipo", "idk_nll"])
def test_missing_alternates_are_named_before_a_step(
    known: Path, forget: Rows, retain: Rows, alternates: dict[Encoded, Rows], objective: str
) -> None:
    model = worn(known)
    before = lora(model)
    some = {row: others for row, others in alternates.items() if row is not forget[1]}
    for given, names in ((None, "3 of 3 .* f0, f1, f2$"), (some, "1 of 3 .* `chosen` to f1$")):
        with pytest.raises(TrainingError, match=f"{objective} prefers another answer, and {names}"):
            train(model, forget, retain, settings(objective), pad_id=PAD, alternates=given)
    assert all(torch.equal(before[name], value) for name, value in lora(model).items())


# --- tokens that are left out


def test_skip_first_leaves_the_first_counted_tokens_out_but_never_all(
    known: Path, forget: Rows, retain: Rows
) -> None:
    """f0 has three tokens, f1 two, f2 counts the first two of six."""
    one, two = replace(SETTINGS, steps=1, skip_first=1, alpha=0.0), (0.0, 0.0)
    base = load_base(known, "fp32").model
    batch = collate(forget, PAD)
    logps = full_logps(base, batch)
    skipped = batch.answer_mask & (batch.answer_mask.cumsum(-1) > 1)
    expected = {1: (logps * skipped).sum(-1) / skipped.sum(-1)}
    kept = batch.answer_mask & (batch.answer_mask.cumsum(-1) > 2)
    kept[1:] = batch.answer_mask[1:]  # no more than two tokens: they are kept
    expected[2] = (logps * kept).sum(-1) / kept.sum(-1)
    for count, means in expected.items():
        chosen = replace(one, skip_first=count)
        (report,) = train(worn(known), forget, retain, chosen, pad_id=PAD).steps
        assert report.forget_probability == pytest.approx(float(means.exp().mean()), rel=1e-4)
        assert (report.retain_loss, report.retain_probability) == two


# --- a constraint


def test_a_constraint_starts_from_the_retain_loss_before_and_moves_its_weight(
    known: Path, forget: Rows, retain: Rows
) -> None:
    constraint = Constraint(slack=2.0, weight=3.0, step=5.0, warmup_steps=1)
    chosen = replace(SETTINGS, objective="pdu", learning_rate=1e-3, steps=6, constraint=constraint)
    steps = train(worn(known), forget, retain, chosen, pad_id=PAD).steps
    base = load_base(known, "fp32").model
    batch = collate(retain, PAD)
    epsilon = 2.0 * float(retain_nll(full_logps(base, batch), batch.answer_mask))
    weight = 3.0
    for report in steps:
        assert report.dual == pytest.approx(weight, rel=1e-4)
        assert report.loss == pytest.approx(
            report.forget_loss + weight * (report.retain_loss - epsilon), rel=1e-3, abs=1e-4
        )
        if report.step > 1:
            weight = max(0.0, weight + 5.0 * (report.retain_loss - epsilon))
    assert steps[-1].dual != 3.0


# --- stacks


@pytest.fixture(scope="module")
def first_adapter(known: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, folder = worn(known, seed=5), tmp_path_factory.mktemp("stack") / "first"
    fill_lora(model, seed=9, size=0.3)
    save(model, folder, base="sha256:" + "00" * 32)
    return folder


@pytest.mark.parametrize("objective", ["npo", "undial", "dpo"])
def test_in_a_stack_the_reference_is_the_base_with_the_adapters_before(
    known: Path,
    forget: Rows,
    retain: Rows,
    alternates: dict[Encoded, Rows],
    first_adapter: Path,
    objective: str,
) -> None:
    model = worn(known, stacked_on=first_adapter)
    chosen = settings(objective, steps=2, retain_term="kl", alpha=1.0)
    first, second = train(model, forget, retain, chosen, pad_id=PAD, alternates=alternates).steps
    # A fresh adapter changes nothing yet: model and reference are one.
    assert first.retain_loss == pytest.approx(0.0, abs=1e-6)
    assert second.retain_loss > 1e-6
    if objective in ("npo", "dpo"):
        assert first.forget_loss == pytest.approx(2 / 0.1 * 0.6931472, rel=1e-5)
    alone = worn(known)
    (apart, _) = train(alone, forget, retain, chosen, pad_id=PAD, alternates=alternates).steps
    assert apart.forget_probability != pytest.approx(first.forget_probability, rel=1e-3)


def test_what_an_adapter_is_stacked_on_is_not_trained_and_not_saved(
    known: Path, forget: Rows, retain: Rows, first_adapter: Path, tmp_path: Path
) -> None:
    model = worn(known, stacked_on=first_adapter)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if ".stacked." in name}
    assert before
    assert all(float(value.abs().sum()) > 0 for value in before.values())
    train(model, forget, retain, replace(SETTINGS, steps=2, objective="npo"), pad_id=PAD)
    for name, parameter in model.named_parameters():
        assert name not in before or torch.equal(before[name], parameter)
        assert parameter.requires_grad == (".default." in name)
    save(model, tmp_path / "saved", base="sha256:" + "00" * 32)
    plain = worn(known)
    fill_lora(plain, seed=1)
    ours = lora(model)
    from efface.adapters.lora import load  # the saved adapter alone, on a bare base

    loaded = load(load_base(known, "fp32").model, tmp_path / "saved", name="default")
    assert all(torch.equal(ours[name], value) for name, value in lora(loaded).items())
