"""Law (design §4: 9): the base is bit-equal, and its logits too, after any sequence of attach, swap, detach."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kit import FORGET, PAD, RETAIN, encoded, fill_lora, logits, wide
from peft import PeftModel
from transformers import PreTrainedModel

from efface.adapters.encode import Encoded
from efface.adapters.errors import TrainingError
from efface.adapters.lora import attach, detach, disabled, load, save
from efface.adapters.model import load_base, state_digest
from efface.adapters.trainer import TrainSettings, train

PRECISIONS = ("fp32", "bf16", "nf4")
STEPS = st.one_of(
    st.tuples(st.just("attach"), st.integers(0, 3)),
    st.tuples(st.just("load"), st.sampled_from(["all layers", "two layers"])),
    st.tuples(
        st.sampled_from(["learn", "train", "ask", "disable", "read", "detach", "mode"]), st.integers(0, 3)
    ),
)


@dataclass
class Bench:
    """The files that a sequence may use."""

    base: Path
    adapters: Mapping[str, Path]
    forget: tuple[Encoded, ...]
    retain: tuple[Encoded, ...]


@pytest.fixture(scope="module")
def bench(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    root = tmp_path_factory.mktemp("untouched")
    base = wide(tiny_llama, root / "base")
    targets: dict[str, str | list[str]] = {"all layers": "all-linear", "two layers": ["q_proj", "down_proj"]}
    for name, layers in targets.items():
        worn = attach(load_base(base, "fp32").model, rank=len(name) // 2, targets=layers)
        fill_lora(worn, seed=3)
        save(worn, root / name, base="sha256:" + "00" * 32)
    return Bench(base, {name: root / name for name in targets}, encoded(base, FORGET), encoded(base, RETAIN))


@contextmanager
def reseeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def do(
    bench: Bench, model: PreTrainedModel, worn: PeftModel | None, step: tuple[str, int | str]
) -> PeftModel | None:
    """One step; attach and load take off what is on."""
    verb, how = step
    if verb in ("attach", "load", "detach") and worn is not None:
        assert detach(worn) is model
        worn = None
    if verb == "attach":
        return attach(model, rank=2, seed=int(how))
    if verb == "load":
        return load(model, bench.adapters[str(how)])
    if verb == "ask":
        logits(worn or model)
    if verb == "read":
        (worn or model).state_dict()
    if verb == "mode":
        (worn or model).train(how == 0)
    if verb == "learn" and worn is not None:
        fill_lora(worn, seed=int(how))
    if verb == "train" and worn is not None:
        settings = TrainSettings(
            steps=1, forget_batch=2, retain_batch=2, retain_term="kl" if how == 0 else "nll"
        )
        if "default" in worn.peft_config:
            train(worn, bench.forget, bench.retain, settings, pad_id=PAD)
        else:  # loaded for inference
            with pytest.raises(TrainingError, match="expected the trainable adapter that `attach` makes"):
                train(worn, bench.forget, bench.retain, settings, pad_id=PAD)
    if verb == "disable" and worn is not None:
        with disabled(worn):
            logits(worn)
    return worn


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=20, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=8))
def test_the_base_is_bit_equal_after_any_sequence(
    bench: Bench, precision: str, steps: list[tuple[str, int | str]]
) -> None:
    model = load_base(bench.base, precision).model
    fresh, before = state_digest(model), logits(model)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    worn: PeftModel | None = None
    with reseeded():
        for step in steps:
            worn = do(bench, model, worn, step)
            assert state_digest(worn or model) == fresh
            if worn is not None:
                with disabled(worn):
                    assert torch.equal(logits(worn), before)
    bare = model if worn is None else detach(worn)
    assert bare is model
    assert torch.equal(logits(bare), before)
    assert torch.equal(logits(bare.eval()), before)
    after = bare.state_dict()
    assert list(after) == list(tensors)
    assert all(torch.equal(value, after[name]) for name, value in tensors.items())
    assert not any(parameter.requires_grad for parameter in bare.parameters())
    assert state_digest(bare) == state_digest(load_base(bench.base, precision).model) == fresh


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=10, deadline=None)
@given(st.lists(STEPS, max_size=6), st.sampled_from(["all layers", "two layers"]))
def test_what_was_on_before_does_not_show_in_what_is_on_now(
    bench: Bench, precision: str, steps: list[tuple[str, int | str]], last: str
) -> None:
    model = load_base(bench.base, precision).model
    worn: PeftModel | None = None
    with reseeded():
        for step in [*steps, ("load", last)]:
            worn = do(bench, model, worn, step)
    alone = load(load_base(bench.base, precision).model, bench.adapters[last])
    assert worn is not None
    assert torch.equal(logits(worn), logits(alone))
