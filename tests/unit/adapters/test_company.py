"""Training in company: the draw, what is on while it is, and that nothing of it is left anywhere else."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kit import PAD, fill_lora, logits, wide
from peft import PeftModel

from efface.adapters import Part, Stacking, compose
from efface.adapters.answers import answers
from efface.adapters.apart import read_others
from efface.adapters.checkpoint import Checkpoints
from efface.adapters.company import Company, draw, gathered, in_company
from efface.adapters.encode import Encoded
from efface.adapters.errors import BaseMismatch, TrainingError
from efface.adapters.fast import fast
from efface.adapters.lora import attach, detach, load, save
from efface.adapters.model import load_base, state_digest
from efface.adapters.settings import StopRules, TrainSettings
from efface.adapters.trainer import train
from efface.adapters.watch import StepReport

Rows = tuple[Encoded, ...]
BASE = "sha256:" + "00" * 32
COMPANY = Stacking(company=0.7)
SETTINGS = TrainSettings(
    objective="npo", learning_rate=1e-2, steps=8, forget_batch=2, retain_batch=2, stacking=COMPANY
)


def worn(folder: Path, quantization: str = "fp32", **options: object) -> PeftModel:
    return attach(load_base(folder, quantization).model, **({"rank": 4, "alpha": 8, "seed": 1} | options))  # type: ignore[arg-type]


def lora(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def written(base: Path, place: Path) -> list[Path]:
    """Three adapters on ``base``: two on every layer (one of them rsLoRA), one of rank 2 on q_proj alone."""
    folders = []
    for i, options in enumerate(({}, {"rslora": True}, {"rank": 2, "targets": ["q_proj"]})):
        model = worn(base, seed=20 + i, **options)
        fill_lora(model, seed=30 + i, size=0.15)
        save(model, place / str(i), base=BASE)
        folders.append(place / str(i))
    return folders


@pytest.fixture(scope="module")
def others(known: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return written(known, tmp_path_factory.mktemp("others"))


def company_of(model: PeftModel, folders: list[Path], share: float = 1.0) -> Company:
    found = gathered(model, read_others(model.get_base_model(), folders), seed=0, share=share, every=1)
    assert found is not None
    return found


# --- the draw


@given(st.integers(0, 2**32), st.integers(0, 10**6), st.integers(0, 20), st.floats(0, 1), st.integers(1, 9))
def test_a_draw_is_a_set_of_the_company_and_only_its_arguments_decide(
    seed: int, step: int, count: int, share: float, every: int
) -> None:
    found = draw(seed, step, count, share=share, every=every)
    assert found == tuple(sorted(set(found)))
    assert all(0 <= i < count for i in found)
    first = step - step % every
    assert {draw(seed, s, count, share=share, every=every) for s in range(first, first + every)} == {found}
    assert bool(found) or share < 1 or not count
    assert not found or share > 0


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 2**32))
def test_draws_are_alone_as_often_as_asked_and_of_every_size_and_member_alike(seed: int) -> None:
    n, count = 6000, 4
    found = [draw(seed, step, count, share=0.75) for step in range(n)]
    sizes = Counter(map(len, found))
    expected = {0: 0.25 * n} | dict.fromkeys(range(1, count + 1), 0.75 * n / count)
    members = Counter(i for one in found for i in one)
    # Six standard deviations of a count of about n p: a right draw fails once in 10^8.
    for size, mean in expected.items():
        assert abs(sizes[size] - mean) < 6 * mean**0.5
    mean = 0.75 * n * (count + 1) / 2 / count
    assert all(abs(members[i] - mean) < 6 * mean**0.5 for i in range(count))


def test_the_draw_is_what_it_was() -> None:
    """A resumed run goes on with the draws of the version that began it: they are written down."""
    assert [draw(0, step, 3, share=0.5) for step in range(8)] == DRAWN


DRAWN = [(0, 1), (), (0, 1, 2), (), (), (), (0, 1, 2), (0, 2)]


# --- what is on


@pytest.mark.parametrize("on", [(0,), (1, 2), (0, 1, 2)])
def test_the_output_in_company_is_that_of_the_stack(
    known: Path, others: list[Path], on: tuple[int, ...], tmp_path: Path
) -> None:
    mine = worn(known)
    fill_lora(mine, seed=3, size=0.15)
    save(mine, tmp_path / "mine", base=BASE)
    parts = [Part(folder) for folder in (tmp_path / "mine", *(others[i] for i in on))]
    stack = compose(parts, tmp_path / "stack").path
    expected = logits(load(load_base(known, "fp32").model, stack))
    company = company_of(mine, others)
    for context in (True, False):
        if context:
            with fast(mine), in_company(mine, company):
                company.on = on
                found = logits(mine)
        else:
            with in_company(mine, company):
                company.on = on
                found = logits(mine)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        company.leave()


@pytest.mark.parametrize("quantization", ["fp32", "bf16", "nf4"])
def test_the_base_and_the_model_without_company_are_bit_equal_before_and_after(
    tiny_llama: Path, tmp_path: Path, forget: Rows, retain: Rows, quantization: str
) -> None:
    folder = wide(tiny_llama, tmp_path / "wide")
    folders = written(folder, tmp_path)
    base = load_base(folder, quantization)
    fresh, before = state_digest(base.model), logits(base.model)
    model = attach(base.model, rank=4, alpha=8)
    company = company_of(model, folders)
    with in_company(model, company):
        assert torch.equal(logits(model), before)
        company.come(0)
        assert not torch.equal(logits(model), before)
        company.leave()
        assert torch.equal(logits(model), before)
    result = train(
        model, forget, retain, replace(SETTINGS, steps=4, learning_rate=1e-3), pad_id=PAD, company=folders
    )
    assert len(result.steps) == 4
    assert not any("forward" in vars(module) for module in model.modules())
    assert set(model.peft_config) == {"default"}
    assert state_digest(model) == fresh
    assert torch.equal(logits(detach(model)), before)
    assert state_digest(base.model) == fresh


def test_gradients_reach_the_new_adapter_alone(known: Path, others: list[Path]) -> None:
    model = worn(known)
    fill_lora(model, seed=3, size=0.15)
    company = company_of(model, others)
    with in_company(model, company):
        company.come(0)
        model(input_ids=torch.tensor([[1, 5, 6, 18]])).logits.sum().backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None}
    assert got == set(lora(model))
    assert not any(t.requires_grad for there in company.layers.values() for f in there.values() for t in f)


# --- training


def run(
    known: Path, forget: Rows, retain: Rows, chosen: TrainSettings, company: list[Path], **more: object
) -> tuple[dict[str, torch.Tensor], tuple[StepReport, ...]]:
    torch.manual_seed(len(more))  # what happened before must not matter
    model = worn(known)
    result = train(model, forget, retain, chosen, pad_id=PAD, company=company, **more)  # type: ignore[arg-type]
    return lora(model), result.steps


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_step_in_company_meets_the_stack_and_its_reference_does_not(
    known: Path, forget: Rows, retain: Rows, others: list[Path], tmp_path: Path
) -> None:
    chosen = replace(SETTINGS, steps=6, retain_term="kl", learning_rate=1e-12, forget_batch=3, retain_batch=3)
    _, steps = run(known, forget, retain, chosen, others)
    _, alone = run(known, forget, retain, replace(chosen, stacking=Stacking()), [])
    drawn = [draw(chosen.seed, i, 3, share=0.7) for i in range(6)]
    assert () in drawn
    assert any(drawn)
    for step, plain, on in zip(steps, alone, drawn, strict=True):
        if not on:
            assert step == plain
            continue
        stack = compose([Part(others[i]) for i in on], tmp_path / f"s{step.step}").path
        model = attach(load_base(known, "fp32").model, rank=4, alpha=8, stacked_on=stack)
        met = train(model, forget, retain, replace(chosen, steps=1, stacking=Stacking()), pad_id=PAD).steps[0]
        assert step.forget_probability == pytest.approx(met.forget_probability, rel=1e-4)
        # There the stack is the reference too; here the base is, and the company's damage is to be made good.
        assert met.retain_loss == pytest.approx(0.0, abs=1e-5)
        assert step.retain_loss > 1e-3


def test_company_decides_the_weights_and_a_seed_decides_the_company(
    known: Path, forget: Rows, retain: Rows, others: list[Path]
) -> None:
    one, _ = run(known, forget, retain, SETTINGS, others)
    again, _ = run(known, forget, retain, SETTINGS, others)
    alone, _ = run(known, forget, retain, replace(SETTINGS, stacking=Stacking()), [])
    slower, _ = run(
        known, forget, retain, replace(SETTINGS, stacking=replace(COMPANY, company_every=3)), others
    )
    assert same(one, again)
    assert not same(one, alone)
    assert not same(one, slower)


def test_a_first_request_has_no_company_and_trains_as_without(
    known: Path, forget: Rows, retain: Rows
) -> None:
    one, _ = run(known, forget, retain, SETTINGS, [])
    alone, _ = run(known, forget, retain, replace(SETTINGS, stacking=Stacking()), [])
    assert same(one, alone)


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"accumulation": 2}])
def test_a_run_that_was_cut_off_goes_on_to_the_same_weights(
    known: Path, forget: Rows, retain: Rows, others: list[Path], tmp_path: Path, changes: dict[str, object]
) -> None:
    def crash(report: StepReport) -> None:
        if report.step == 5:
            raise KeyError

    stacking = replace(COMPANY, orthogonal=0.1, orthogonal_outputs=0.1)
    chosen = replace(SETTINGS, stacking=stacking, **changes)  # type: ignore[arg-type]
    beside = {"apart_from": others}
    whole, steps = run(known, forget, retain, chosen, others, **beside)
    place = Checkpoints(tmp_path / "run", "sha256:run", every=2)
    with pytest.raises(KeyError):
        run(known, forget, retain, chosen, others, **beside, checkpoints=place, on_step=crash)
    resumed, after = run(
        known, forget, retain, chosen, others, **beside, checkpoints=replace(place, resume=True)
    )
    assert same(resumed, whole)
    assert after == steps


def test_recomputed_layers_see_the_same_company(
    known: Path, forget: Rows, retain: Rows, others: list[Path]
) -> None:
    always = replace(SETTINGS, stacking=Stacking(company=1.0))
    plain, _ = run(known, forget, retain, always, others)
    recomputed, _ = run(known, forget, retain, replace(always, gradient_checkpointing=True), others)
    for name, value in plain.items():
        torch.testing.assert_close(recomputed[name], value, rtol=0, atol=1e-4)


def test_probes_find_the_model_alone(known: Path, forget: Rows, retain: Rows, others: list[Path]) -> None:
    rules = StopRules(every=1, retain_drop=None, distinct=None)
    chosen = replace(SETTINGS, steps=4, learning_rate=1e-12, stacking=Stacking(company=1.0), stop=rules)
    model = worn(known)
    result = train(model, forget, retain, chosen, pad_id=PAD, company=others)
    seen = {round(probe.retain_probability, 5) for probe in result.probes}
    assert len(result.probes) == 5
    assert len(seen) == 1


def test_an_adapter_trained_in_company_holds_in_company(
    known: Path, forget: Rows, retain: Rows, others: list[Path]
) -> None:
    """Against one that was not, in the stack with all of them: forget and retain answers are further apart."""
    chosen = replace(SETTINGS, objective="simnpo", steps=25, forget_batch=3, retain_batch=3)
    found = []
    for stacking, company in ((Stacking(), []), (Stacking(company=0.7), others)):
        model = worn(known)
        train(model, forget, retain, replace(chosen, stacking=stacking), pad_id=PAD, company=company)
        everyone = company_of(model, others)
        with in_company(model, everyone):
            everyone.on = (0, 1, 2)
            found.append([answers(model, rows, PAD).probability() for rows in (forget, retain)])
    (forgets, keeps), (forgets_together, keeps_together) = found
    assert keeps_together - forgets_together > keeps - forgets


# --- what is refused


def test_company_that_cannot_be_meant_is_refused_before_anything_changes(
    known: Path, forget: Rows, retain: Rows, others: list[Path], tmp_path: Path
) -> None:
    model = worn(known)
    before = lora(model)
    foreign = worn(wide(known, tmp_path / "foreign-base"))
    save(foreign, tmp_path / "foreign", base=BASE)
    for company, stacking, error, said in (
        (others, Stacking(), TrainingError, "company names 3 adapters: expected stacking.company above 0"),
        ([others[0]] * 2, COMPANY, TrainingError, "expected each other adapter once"),
        ([tmp_path / "foreign"], COMPANY, BaseMismatch, "expected a base whose"),
        (others, Stacking(company=1.5), TrainingError, "a share of steps, from 0 to 1, got 1.5"),
        (others, Stacking(company=float("nan")), TrainingError, "a share of steps, from 0 to 1, got nan"),
        (others, replace(COMPANY, company_every=0), TrainingError, "stacking.company_every"),
    ):
        with pytest.raises(error, match=said):
            train(model, forget, retain, replace(SETTINGS, stacking=stacking), pad_id=PAD, company=company)
    assert same(lora(model), before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_company_on_the_output_head_is_refused(
    tiny_llama: Path, tmp_path: Path, forget: Rows, retain: Rows
) -> None:
    untied = wide(tiny_llama, tmp_path / "untied", tied=False)
    on_head = worn(untied, targets=["lm_head", "q_proj"])
    save(on_head, tmp_path / "on-head", base=BASE)
    with pytest.raises(TrainingError, match="layers before the output head, got lm_head"):
        train(worn(untied), forget, retain, SETTINGS, pad_id=PAD, company=[tmp_path / "on-head"])
