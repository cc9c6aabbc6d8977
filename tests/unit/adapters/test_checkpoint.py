"""A run that stops anywhere goes on to the same bits; what is no whole checkpoint of this run is refused."""

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_kit import PAD
from peft import PeftModel
from transformers import TrainerCallback

from efface.adapters.checkpoint import STATE, WEIGHTS, Checkpoints
from efface.adapters.encode import Encoded
from efface.adapters.errors import Interrupted, TrainingError
from efface.adapters.lora import attach
from efface.adapters.model import load_base
from efface.adapters.settings import Constraint, StopRules, TrainSettings
from efface.adapters.trainer import TrainResult, train
from efface.adapters.watch import StepReport

Rows = tuple[Encoded, ...]
SETTINGS = TrainSettings(
    objective="npo", learning_rate=1e-2, steps=7, forget_batch=2, retain_batch=2, warmup_steps=2
)
KINDS: dict[str, dict[str, object]] = {
    "npo": {},
    "accumulated": {"accumulation": 2, "schedule": "cosine", "weight_decay": 0.1},
    "constrained": {
        "objective": "pdu",
        "constraint": Constraint(weight=2.0, step=3.0),
        "learning_rate": 1e-3,
    },
    "stopping": {"stop": StopRules(every=2, forget_probability=0.6, retain_drop=None, distinct=None)},
    "probed": {"stop": StopRules(every=2, retain_drop=None, distinct=None), "retain_term": "kl"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


class Crash(Exception):
    """Stands for whatever ends a process."""


def worn(folder: Path) -> PeftModel:
    return attach(load_base(folder, "fp32").model, rank=4, alpha=8, seed=1)


def lora(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def crash_at(step: int) -> Callable[[StepReport], None]:
    def listen(report: StepReport) -> None:
        if report.step == step:
            raise Crash

    return listen


def at(folder: Path, *, every: int = 2, resume: bool = False, key: str = "sha256:run") -> Checkpoints:
    return Checkpoints(folder, key, every, resume)


@every_kind
@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_a_crashed_run_goes_on_to_the_same_bits(
    known: Path, forget: Rows, retain: Rows, tmp_path: Path, kind: str, step: int
) -> None:
    chosen = replace(SETTINGS, **KINDS[kind])  # type: ignore[arg-type]
    whole = worn(known)
    expected = train(whole, forget, retain, chosen, pad_id=PAD)
    step = min(step, len(expected.steps))
    with pytest.raises(Crash):
        train(
            worn(known),
            forget,
            retain,
            chosen,
            pad_id=PAD,
            checkpoints=at(tmp_path / "run"),
            on_step=crash_at(step),
        )
    seen: list[int] = []
    torch.manual_seed(99)  # what happened in the new process before must not matter
    resumed = worn(known)
    result = train(
        resumed,
        forget,
        retain,
        chosen,
        pad_id=PAD,
        checkpoints=at(tmp_path / "run", resume=True),
        on_step=lambda report: seen.append(report.step),
    )
    assert equal(lora(resumed), lora(whole))
    assert replace(result, seconds=0.0) == replace(expected, seconds=0.0)
    # From the last even step before the crash.
    assert seen == list(range((step - 1) // 2 * 2 + 1, len(expected.steps) + 1))


def test_checkpoints_change_nothing(known: Path, forget: Rows, retain: Rows, tmp_path: Path) -> None:
    plain, watched = worn(known), worn(known)
    expected = train(plain, forget, retain, SETTINGS, pad_id=PAD)
    found = train(watched, forget, retain, SETTINGS, pad_id=PAD, checkpoints=at(tmp_path / "run"))
    assert equal(lora(plain), lora(watched))
    assert found.steps == expected.steps


def test_a_finished_run_is_not_run_again(known: Path, forget: Rows, retain: Rows, tmp_path: Path) -> None:
    first = worn(known)
    done = train(first, forget, retain, SETTINGS, pad_id=PAD, checkpoints=at(tmp_path / "run"))
    again, seen = worn(known), list[StepReport]()
    checkpoints = at(tmp_path / "run", resume=True)
    found = train(again, forget, retain, SETTINGS, pad_id=PAD, checkpoints=checkpoints, on_step=seen.append)
    assert (found, seen) == (done, [])
    assert equal(lora(first), lora(again))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [STATE, WEIGHTS]


def test_without_resume_a_run_starts_anew(known: Path, forget: Rows, retain: Rows, tmp_path: Path) -> None:
    half(known, forget, retain, tmp_path / "run")
    model, seen = worn(known), list[int]()
    train(
        model,
        forget,
        retain,
        SETTINGS,
        pad_id=PAD,
        checkpoints=at(tmp_path / "run", key="sha256:other"),
        on_step=lambda report: seen.append(report.step),
    )
    assert seen == list(range(1, 8))


def half(known: Path, forget: Rows, retain: Rows, folder: Path) -> None:
    """A run that crashed in step 6, with checkpoints of steps 2 and 4."""
    with pytest.raises(Crash):
        train(worn(known), forget, retain, SETTINGS, pad_id=PAD, checkpoints=at(folder), on_step=crash_at(6))
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def resumed(known: Path, forget: Rows, retain: Rows, folder: Path, **options: str) -> TrainResult:
    checkpoints = at(folder, resume=True, **options)
    return train(worn(known), forget, retain, SETTINGS, pad_id=PAD, checkpoints=checkpoints)


@pytest.mark.parametrize("lost", ["optimizer.pt", "scheduler.pt", "rng_state.pth", WEIGHTS])
def test_a_checkpoint_that_lost_a_part_is_passed_over(
    known: Path, forget: Rows, retain: Rows, tmp_path: Path, lost: str
) -> None:
    """transformers goes on without a missing optimizer state and says nothing."""
    half(known, forget, retain, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-4" / lost).unlink()
    expected = train(worn(known), forget, retain, SETTINGS, pad_id=PAD).steps
    assert resumed(known, forget, retain, tmp_path / "run").steps == expected


def test_starting_anew_drops_what_an_earlier_run_finished(
    known: Path, forget: Rows, retain: Rows, tmp_path: Path
) -> None:
    train(
        worn(known), forget, retain, SETTINGS, pad_id=PAD, checkpoints=at(tmp_path / "run", key="sha256:one")
    )
    half(known, forget, retain, tmp_path / "run")
    assert len(resumed(known, forget, retain, tmp_path / "run").steps) == 7


def test_half_a_checkpoint_is_passed_over(known: Path, forget: Rows, retain: Rows, tmp_path: Path) -> None:
    half(known, forget, retain, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-4" / STATE).unlink()
    expected = train(worn(known), forget, retain, SETTINGS, pad_id=PAD).steps
    assert resumed(known, forget, retain, tmp_path / "run").steps == expected


@pytest.mark.parametrize("when", ["half", "finished"])
def test_another_runs_checkpoint_is_refused(
    known: Path, forget: Rows, retain: Rows, tmp_path: Path, when: str
) -> None:
    if when == "half":
        half(known, forget, retain, tmp_path / "run")
    else:
        train(worn(known), forget, retain, SETTINGS, pad_id=PAD, checkpoints=at(tmp_path / "run"))
    with pytest.raises(TrainingError, match=r"expected (a checkpoint of )?this very run .* without --resume"):
        resumed(known, forget, retain, tmp_path / "run", key="sha256:other")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def misshapen(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: value[:1].contiguous() for name, value in load_file(path).items()}, path)


@pytest.mark.parametrize(("spoil", "file"), [(cut, WEIGHTS), (misshapen, WEIGHTS), (cut, STATE)])
def test_a_broken_checkpoint_is_named(
    known: Path, forget: Rows, retain: Rows, tmp_path: Path, spoil: Callable[[Path], None], file: str
) -> None:
    half(known, forget, retain, tmp_path / "run")
    spoil(tmp_path / "run" / "checkpoint-4" / file)
    with pytest.raises(TrainingError, match="without --resume"):
        resumed(known, forget, retain, tmp_path / "run")


def test_no_token_of_a_row_is_in_a_checkpoint(
    known: Path, forget: Rows, retain: Rows, tmp_path: Path
) -> None:
    half(known, forget, retain, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoint-4"
    assert set(json.loads((folder / STATE).read_text())) == {"key", "reports", "probes", "best_step", "dual"}
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == [STATE, "optimizer.pt", "rng_state.pth", "scheduler.pt", WEIGHTS, "trainer_state.json"]
    assert "hamlet" not in (folder / "trainer_state.json").read_text()


# --- Ctrl-C


def press_at(step: int, times: int = 1) -> Callable[[StepReport], None]:
    def listen(report: StepReport) -> None:
        if report.step == step:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    return listen


def test_ctrl_c_ends_after_the_step_with_a_checkpoint_to_go_on_from(
    known: Path, forget: Rows, retain: Rows, tmp_path: Path
) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    whole, model, later = worn(known), worn(known), worn(known)
    expected = train(whole, forget, retain, SETTINGS, pad_id=PAD).steps
    try:
        with pytest.raises(Interrupted, match="interrupted after step 3; go on with --resume") as caught:
            train(
                model,
                forget,
                retain,
                SETTINGS,
                pad_id=PAD,
                checkpoints=at(tmp_path / "run"),
                on_step=press_at(3),
            )
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (caught.value.step, caught.value.folder) == (3, tmp_path / "run")
    assert not model.training
    result = train(later, forget, retain, SETTINGS, pad_id=PAD, checkpoints=at(tmp_path / "run", resume=True))
    assert result.steps == expected
    assert equal(lora(whole), lora(later))


@pytest.mark.parametrize("kind", ["npo", "stopping"])
def test_ctrl_c_in_the_last_step_leaves_a_finished_run(
    known: Path, forget: Rows, retain: Rows, tmp_path: Path, kind: str
) -> None:
    chosen = replace(SETTINGS, **KINDS[kind])  # type: ignore[arg-type]
    expected = train(worn(known), forget, retain, chosen, pad_id=PAD)
    last, handler = len(expected.steps), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted):
            train(
                worn(known),
                forget,
                retain,
                chosen,
                pad_id=PAD,
                checkpoints=at(tmp_path / "run"),
                on_step=press_at(last),
            )
    finally:
        signal.signal(signal.SIGINT, handler)
    seen: list[StepReport] = []
    checkpoints = at(tmp_path / "run", resume=True)
    found = train(
        worn(known), forget, retain, chosen, pad_id=PAD, checkpoints=checkpoints, on_step=seen.append
    )
    assert seen == []
    assert replace(found, seconds=0.0) == replace(expected, seconds=0.0)


@pytest.mark.parametrize(("times", "saved"), [(2, True), (1, False)])
def test_a_second_ctrl_c_or_one_with_nothing_to_keep_ends_at_once(
    known: Path, forget: Rows, retain: Rows, tmp_path: Path, times: int, saved: bool
) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    checkpoints = at(tmp_path / "run") if saved else None
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            train(
                worn(known),
                forget,
                retain,
                SETTINGS,
                pad_id=PAD,
                checkpoints=checkpoints,
                on_step=press_at(3, times),
            )
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not isinstance(caught.value, Interrupted)


# --- what is not finite


class Spoil(TrainerCallback):
    """Puts a value into the gradients of step 4."""

    def __init__(self, value: float) -> None:
        self._value = value

    def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step != 3:  # type: ignore[attr-defined]
            return
        parameter = next(p for p in kwargs["model"].parameters() if p.requires_grad)  # type: ignore[attr-defined]
        parameter.register_hook(lambda grad: grad * self._value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    known: Path, forget: Rows, retain: Rows, tmp_path: Path, value: float
) -> None:
    model, seen = worn(known), list[StepReport]()
    with pytest.raises(TrainingError, match=r"the gradient is (nan|inf) at step 4: .* look at f\d") as caught:
        train(
            model,
            forget,
            retain,
            SETTINGS,
            pad_id=PAD,
            checkpoints=at(tmp_path / "run"),
            callbacks=[Spoil(value)],
            on_step=seen.append,
        )
    assert [report.step for report in seen] == [1, 2, 3]
    assert sum(row.id in str(caught.value) for row in (*forget, *retain)) >= 2
    assert all(value.isfinite().all() for value in lora(model).values())
    assert (tmp_path / "run" / "checkpoint-2" / STATE).is_file()
    assert str(caught.value).endswith(
        f"The weights of step 2 are kept in {tmp_path / 'run' / 'checkpoint-2'}"
    )


def test_too_little_memory_says_what_to_lower(known: Path, forget: Rows, retain: Rows) -> None:
    def exhausted(_report: StepReport) -> None:
        torch.empty(1 << 60)

    with pytest.raises(
        TrainingError, match=r"out of memory with 2 forget and 2 retain rows .* lower forget_batch"
    ):
        train(worn(known), forget, retain, SETTINGS, pad_id=PAD, on_step=exhausted)
