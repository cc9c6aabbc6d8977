"""Trackers, callbacks, optimizers and buckets: what surrounds the steps of a run."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kit import PAD
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback

from efface.adapters.encode import Encoded
from efface.adapters.errors import TrainingError
from efface.adapters.lora import attach
from efface.adapters.model import load_base
from efface.adapters.settings import Optimizer, TrainSettings
from efface.adapters.steps import Steps
from efface.adapters.trainer import train

Rows = tuple[Encoded, ...]
SETTINGS = TrainSettings(learning_rate=1e-2, steps=3, forget_batch=3, retain_batch=3)


def worn(folder: Path) -> PeftModel:
    return attach(load_base(folder, "fp32").model, rank=4, alpha=8, seed=1)


class Hear(TrainerCallback):
    """Keeps what trackers are sent."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []
        self.events: list[str] = []

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.logs.append(dict(kwargs["logs"]))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("begin")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("end")


def test_trackers_see_the_parts_of_the_loss(
    known: Path, forget: Rows, retain: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    hear = Hear()
    result = train(
        worn(known), forget, retain, SETTINGS, pad_id=PAD, report_to="tensorboard", callbacks=[hear]
    )
    steps = [log for log in hear.logs if "loss" in log]
    for report, log in zip(result.steps, steps, strict=True):
        assert log["forget_loss"] == report.forget_loss
        assert log["retain_probability"] == report.retain_probability
        assert log["loss"] == pytest.approx(report.loss, rel=1e-3)
    assert hear.events == ["begin", "end"]
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    for name in ("loss", "forget_loss", "retain_loss", "forget_probability", "retain_probability"):
        written = [scalar.value for scalar in board.Scalars(f"train/{name}")]
        assert written == pytest.approx([getattr(report, name) for report in result.steps], rel=1e-3)


def test_an_unknown_tracker_is_refused_before_a_step(known: Path, forget: Rows, retain: Rows) -> None:
    with pytest.raises(TrainingError, match=r"report_to .*wandbb.* tensorboard"):
        train(worn(known), forget, retain, SETTINGS, pad_id=PAD, report_to="wandbb")


def test_a_tracker_that_is_not_installed_is_refused(known: Path, forget: Rows, retain: Rows) -> None:
    with pytest.raises(TrainingError, match=r"report_to .*clearml"):
        train(worn(known), forget, retain, SETTINGS, pad_id=PAD, report_to="clearml")


def test_an_8_bit_optimizer_trains(known: Path, forget: Rows, retain: Rows) -> None:
    chosen = replace(SETTINGS, steps=10, optimizer="adamw_8bit")
    first, *_, last = train(worn(known), forget, retain, chosen, pad_id=PAD).steps
    assert last.forget_probability < 0.5 * first.forget_probability


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to page from")
@pytest.mark.parametrize("optimizer", ["paged_adamw_8bit", "paged_adamw_32bit"])
def test_a_paged_optimizer_trains_unpaged_without_a_gpu_and_says_so(
    known: Path, forget: Rows, retain: Rows, optimizer: Optimizer
) -> None:
    chosen = replace(SETTINGS, steps=10, optimizer=optimizer)
    with pytest.warns(UserWarning, match="Paged optimizers are not supported on CPU"):
        first, *_, last = train(worn(known), forget, retain, chosen, pad_id=PAD).steps
    assert last.forget_probability < 0.5 * first.forget_probability


# --- buckets


def rows_of(lengths: list[int], side: str) -> Rows:
    return tuple(Encoded(f"{side}{i}", (1,) * n, (2,)) for i, n in enumerate(lengths))


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_buckets_deal_the_same_rows_in_other_company(
    f: list[int], r: list[int], steps: int, f_size: int, r_size: int, accumulation: int, seed: int
) -> None:
    forget, retain = rows_of(f, "f"), rows_of(r, "r")
    chosen = TrainSettings(
        steps=steps, forget_batch=f_size, retain_batch=r_size, accumulation=accumulation, seed=seed
    )
    dealt = Steps(forget, retain, chosen)
    plain = Steps(forget, retain, replace(chosen, length_buckets=False))
    assert len(dealt) == len(plain) == steps * accumulation
    for side, size in (("forget", f_size), ("retain", r_size)):
        hands = [getattr(dealt[i], side) for i in range(len(dealt))]
        assert {len(hand) for hand in hands} == {size}
        expected = Counter(row for i in range(len(plain)) for row in getattr(plain[i], side))
        assert Counter(row for hand in hands for row in hand) == expected
    again = Steps(forget, retain, chosen)
    assert [again[i] for i in range(len(dealt))] == [dealt[i] for i in range(len(dealt))]


def padding(steps: Steps) -> float:
    widths = [
        (max(len(row.prompt) for row in rows), sum(len(row.prompt) for row in rows), len(rows))
        for i in range(len(steps))
        for rows in [(*steps[i].forget, *steps[i].retain)]
    ]
    return 1 - sum(used for _, used, _ in widths) / sum(width * n for width, _, n in widths)


def test_buckets_save_padding() -> None:
    lengths = [5 + 7 * i % 60 for i in range(64)]
    forget, retain = rows_of(lengths, "f"), rows_of(lengths[::-1], "r")
    chosen = TrainSettings(steps=8)
    ours, plain = (padding(Steps(forget, retain, replace(chosen, length_buckets=on))) for on in (True, False))
    assert ours < 0.5 * plain
