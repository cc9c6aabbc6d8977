"""RMU against algebra and finite differences; its control vector; and its layer, found with PEFT around or not."""

from pathlib import Path

import pytest
import torch
from model_kit import PROMPT
from objective_kit import f64, random_logits
from transformers import AutoModelForCausalLM

from efface.adapters import attach
from efface.adapters.errors import ObjectiveError
from efface.adapters.objectives import control_vector, layer_module, rmu, rmu_retain


def test_rmu_by_hand_is_a_mean_over_positions_and_width() -> None:
    hidden = f64(1, 2, 3, 0, 0, 0).reshape(2, 3)
    assert rmu(hidden, f64(1, 0, 1)).item() == pytest.approx(((4 + 4) + (1 + 1)) / 6)
    assert rmu_retain(hidden, hidden.flip(0)).item() == pytest.approx(2 * 14 / 6)


def test_rmu_is_the_slow_one() -> None:
    hidden, reference = random_logits(4, 5), random_logits(4, 5, seed=1)
    control = reference[0]
    rows = [zip(row, control.tolist(), strict=True) for row in hidden.tolist()]
    slow = sum((a - b) ** 2 for row in rows for a, b in row) / 20
    assert rmu(hidden, control).item() == pytest.approx(slow, rel=1e-12)
    pairs = zip(hidden.flatten().tolist(), reference.flatten().tolist(), strict=True)
    assert rmu_retain(hidden, reference).item() == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / 20)


def test_gradients_agree_with_finite_differences_and_stop_at_the_target() -> None:
    hidden, other = random_logits(4, 5).requires_grad_(), random_logits(4, 5, seed=1).requires_grad_()
    control = other.detach()[0].clone()
    assert torch.autograd.gradcheck(lambda x: rmu(x, control), (hidden,))
    fixed = other.detach().clone()
    assert torch.autograd.gradcheck(lambda x: rmu_retain(x, fixed), (hidden,))
    (rmu(hidden, other[0]) + rmu_retain(hidden, other)).backward()
    assert other.grad is None


def test_both_are_nought_where_they_want_to_be_and_wide_for_narrow_states() -> None:
    control = control_vector(5, seed=0)
    assert rmu(control.repeat(3, 1), control).item() == 0.0
    narrow = torch.full((2, 3), 300.0).half()
    assert rmu_retain(narrow, narrow).item() == 0.0
    assert rmu(narrow, torch.zeros(3)).item() == 90_000.0  # more than float16 holds


def test_a_control_vector_is_its_seeds_alone() -> None:
    torch.manual_seed(1)
    first = control_vector(64, seed=3, scale=6.5)
    torch.manual_seed(2)
    torch.rand(10)
    before = torch.get_rng_state()
    assert torch.equal(control_vector(64, seed=3, scale=6.5), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(control_vector(64, seed=4, scale=6.5), first)
    assert first.norm().item() == pytest.approx(6.5)
    assert (first >= 0).all()
    torch.testing.assert_close(control_vector(64, seed=3, scale=13.0), 2 * first)


def test_the_layer_is_found_bare_and_through_peft_and_its_output_gets_gradients(tiny_llama: Path) -> None:
    bare = AutoModelForCausalLM.from_pretrained(tiny_llama)
    layers = [layer_module(bare, index) for index in (0, 1)]
    assert layers == list(bare.model.layers)
    wrapped = attach(bare, rank=2)
    assert [layer_module(wrapped, index) for index in (0, 1)] == layers
    seen: list[torch.Tensor] = []
    handle = layers[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    out = wrapped(input_ids=PROMPT, output_hidden_states=True)
    handle.remove()
    assert torch.equal(seen[0], out.hidden_states[1])
    rmu(seen[0].flatten(0, 1), control_vector(32, seed=0)).backward()
    moved = {name for name, p in wrapped.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moved
    assert all("lora_B" in name and ".layers.0." in name for name in moved)


@pytest.mark.parametrize("index", [2, -1, 40])
def test_a_layer_that_is_not_there_raises_naming_those_that_are(tiny_llama: Path, index: int) -> None:
    bare = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with pytest.raises(
        ObjectiveError, match=rf"no decoder layer {index}: model\.layers\.0 to model\.layers\.1"
    ):
        layer_module(bare, index)
    with pytest.raises(ObjectiveError, match=r"base_model\.model\.model\.layers\.0 to .*layers\.1 exist"):
        layer_module(attach(bare, rank=2), index)


def test_what_has_no_single_stack_of_layers_raises(tiny_llama: Path) -> None:
    with pytest.raises(ObjectiveError, match="give the causal language model itself"):
        layer_module(torch.nn.Linear(2, 2), 0)
    twin = AutoModelForCausalLM.from_pretrained(tiny_llama)
    twin.tower = torch.nn.ModuleList([torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)])
    with pytest.raises(ObjectiveError, match=r"got \['model.layers', 'tower'\]"):
        layer_module(twin, 0)


def test_bad_arguments_raise() -> None:
    for hidden, control in ((torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(3), torch.zeros(3))):
        with pytest.raises(ObjectiveError, match="control vector"):
            rmu(hidden, control)
    with pytest.raises(ObjectiveError, match="N > 0"):
        rmu(torch.zeros(0, 3), torch.zeros(3))
    with pytest.raises(ObjectiveError, match="two matrices"):
        rmu_retain(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ObjectiveError, match="hidden size"):
        control_vector(0, seed=0)
    with pytest.raises(ObjectiveError, match="scale"):
        control_vector(4, seed=0, scale=0.0)
