"""Law of hot-swaps: after any sequence of them every slot answers as a fresh load does, and the base is untouched.

Bit for bit, in float32 and bfloat16, over adapters of other ranks, alphas, scalings, layers and types; refused ones are
in between, and nothing of them is left.
"""

import shutil
from pathlib import Path

import pytest
import torch
from hotswap_kit import FORMS, fresh, write_forms
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kit import logits
from transformers import AutoModelForCausalLM

from efface.adapters.errors import AdapterError
from efface.adapters.model import state_digest
from efface.serving import NoRoute, ProbeFailed
from efface.serving.hotswap import HotSwap

SLOTS = ("a", "ab", "lora")  # names in one another: PEFT zeroes "ab" when "a" is hot-swapped
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")

put = st.tuples(st.just("put"), st.sampled_from(SLOTS), st.integers(0, len(FORMS) - 1))
refused = st.tuples(
    st.sampled_from(["broken", "probe"]), st.sampled_from(SLOTS), st.integers(0, len(FORMS) - 1)
)
drop = st.tuples(st.just("drop"), st.sampled_from(SLOTS), st.just(0))
steps = st.lists(st.one_of(put, put, refused, drop), max_size=8)


class World:
    """A base, adapters, and what each answers after a fresh load."""

    def __init__(self, base: Path, dtype: torch.dtype, adapters: list[Path], broken: Path) -> None:
        self.adapters, self.broken = adapters, broken
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
        self.answers = [fresh(base, dtype, adapter) for adapter in adapters]
        self.bare, self.digest = logits(self.model), state_digest(self.model)


@pytest.fixture(scope="module", params=DTYPES)
def world(
    request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> World:
    out = tmp_path_factory.mktemp("hotswap")
    adapters = write_forms(tiny_llama, out)
    broken = Path(shutil.copytree(adapters[0], out / "broken"))
    weights = broken / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4:] = b"\xff\xff\xff\x7f"  # one NaN
    weights.write_bytes(data)
    return World(tiny_llama, DTYPES[request.param], adapters, broken)


def failing(_: object) -> None:
    raise ProbeFailed("expected another answer, got this one; roll back")


def step(world: World, swap: HotSwap, there: dict[str, int], kind: str, slot: str, which: int) -> None:
    if kind == "put":
        swap.put(slot, world.adapters[which])
        there[slot] = which
    elif kind == "broken":
        with pytest.raises(AdapterError, match="finite values"):
            swap.put(slot, world.broken)
    elif kind == "probe":
        with pytest.raises(ProbeFailed):
            swap.put(slot, world.adapters[which], probe=failing)
    elif slot in there:
        swap.drop(slot)
        del there[slot]


def run(world: World, swap: HotSwap, there: dict[str, int], sequence: list) -> None:
    for kind, slot, which in sequence:
        step(world, swap, there, kind, slot, which)
        for name in SLOTS:
            if name not in there:
                with pytest.raises(NoRoute), swap.use(name):
                    pass
                continue
            with swap.use(name) as model:
                assert torch.equal(logits(model), world.answers[there[name]])
    assert set(swap.held()) == set(there)


@settings(max_examples=40)
@given(steps)
def test_after_any_swaps_every_slot_answers_as_a_fresh_load(world: World, sequence: list) -> None:
    swap = HotSwap(world.model)
    try:
        run(world, swap, {}, sequence)
    finally:
        bare = swap.close()
    assert torch.equal(logits(bare), world.bare)
    assert state_digest(bare) == world.digest
