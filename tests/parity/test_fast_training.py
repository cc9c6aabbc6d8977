"""The fast forms of training are the plain ones: same log-probabilities, same gradients, nothing left behind."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from model_kit import wide
from peft import PeftModel
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from efface.adapters.encode import Encoded, collate
from efface.adapters.fast import fast
from efface.adapters.logprobs import answer_hidden, hidden_logprobs, token_logprobs
from efface.adapters.lora import TRAINED, activate, attach
from efface.adapters.model import load_base
from efface.adapters.packed import NAME, can_pack, layout, packing

SIZES = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
}


def model(family: str = "llama", *, checkpointing: bool = False) -> PeftModel:
    """Random weights and a random adapter, in training mode."""
    torch.manual_seed(0)
    base = FAMILIES[family]().requires_grad_(False)
    found = attach(base, rank=4, seed=3)
    fill = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=fill))
    if checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
    return found.train()


def rows(prefix: int, count: int = 6) -> list[Encoded]:
    draw = torch.Generator().manual_seed(2)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 300, (n,), generator=draw).tolist())

    shared = ids(prefix)
    found = [Encoded(str(i), shared + ids(4 + i % 3), ids(5 + 2 * i)) for i in range(count)]
    some = tuple(i % 2 == 0 for i in range(len(found[0].answer)))
    return [Encoded("0", found[0].prompt, found[0].answer, some), *found[1:]]


def weighed(logps: Tensor) -> Tensor:
    """A loss in which every token counts differently."""
    return (logps * torch.linspace(1, 2, len(logps))).sum()


def gradients(found: PeftModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in found.named_parameters() if p.grad is not None}


def plain(found: PeftModel, given: list[Encoded]) -> tuple[Tensor, dict[str, Tensor]]:
    """transformers' padded forward, PEFT's layers, torch's log-softmax."""
    batch = collate(given, 0)
    base = found.get_base_model()
    hidden = base.get_decoder()(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    )[0]  # type: ignore[operator]
    where = batch.answer_mask[:, 1:]
    logits = base.get_output_embeddings()(hidden[:, :-1][where])  # type: ignore[operator]
    logps = logits.log_softmax(-1).gather(-1, batch.input_ids[:, 1:][where][:, None]).squeeze(-1)
    weighed(logps).backward()
    return logps.detach(), gradients(found)


def quick(found: PeftModel, given: list[Encoded]) -> tuple[Tensor, dict[str, Tensor]]:
    with fast(found):
        hidden, targets, head = answer_hidden(found, collate(given, 0))
        logps = hidden_logprobs(hidden, head, targets)
        weighed(logps).backward()
    return logps.detach(), gradients(found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("prefix", "count"), [(0, 6), (2, 6), (12, 6), (40, 6), (12, 1)])
def test_log_probabilities_and_gradients_are_those_of_a_plain_forward(
    family: str, checkpointing: bool, prefix: int, count: int
) -> None:
    given = rows(prefix, count)
    logps, expected = plain(model(family), given)
    ours, found = quick(model(family, checkpointing=checkpointing), given)
    torch.testing.assert_close(ours, logps, rtol=0, atol=2e-5)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-4 * scale, msg=name)
    again, same = quick(model(family, checkpointing=checkpointing), given)
    assert torch.equal(again, ours)
    assert all(torch.equal(same[name], found[name]) for name in found)


def test_padding_and_the_rows_beside_it_do_not_matter() -> None:
    """Each row alone has the log-probabilities that it has among others."""
    given, found = rows(12), model().eval()
    with torch.no_grad(), fast(found):
        hidden, targets, head = answer_hidden(found, collate(given, 0))
        together = hidden_logprobs(hidden, head, targets)
        alone = []
        for row in given:
            hidden, targets, head = answer_hidden(found, collate([row], 0))
            alone.append(hidden_logprobs(hidden, head, targets))
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=2e-5)


def _fails_within(found: PeftModel) -> None:
    with fast(found):
        assert found.get_base_model().config._attn_implementation == NAME
        assert any("forward" in vars(module) for module in found.modules())
        raise KeyError


def test_nothing_is_left_behind() -> None:
    found = model()
    config, ids = found.get_base_model().config, collate(rows(12), 0).input_ids
    before = found(input_ids=ids).logits
    with pytest.raises(KeyError):
        _fails_within(found)
    assert config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in found.modules())
    assert torch.equal(found(input_ids=ids).logits, before)


def test_without_a_layout_the_attention_is_torchs() -> None:
    """So that answers generated in the middle of a run are what they are outside it."""
    found, ids = model().eval(), collate(rows(12), 0).input_ids
    with torch.no_grad():
        before = found(input_ids=ids).logits
        with packing(found.get_base_model().get_decoder()):  # type: ignore[operator]
            assert torch.equal(found(input_ids=ids).logits, before)


def test_a_recomputing_decoder_is_packed_only_where_its_attention_lasts() -> None:
    decoder = model(checkpointing=True).get_base_model().get_decoder()  # type: ignore[operator]
    assert not can_pack(decoder)
    with packing(decoder):
        assert can_pack(decoder)
    assert can_pack(decoder.eval())


@pytest.mark.parametrize(
    ("change", "value"),
    [("model_type", "gemma3_text"), ("_attn_implementation", "eager"), ("attention_dropout", 0.1)],
)
def test_decoders_that_are_something_else_are_not_packed(change: str, value: object) -> None:
    decoder = model().get_base_model().get_decoder()  # type: ignore[operator]
    assert can_pack(decoder)
    setattr(decoder.config, change, value)
    assert not can_pack(decoder)


def test_a_layout_names_every_token_once() -> None:
    own = torch.tensor([[True, True, True], [True, False, False]])
    found = layout(own, 2)
    real = found.queries[found.real]
    assert sorted(real.tolist()) == [0, 1, 2, 3, 4, 5]
    assert found.queries[found.real].tolist() == [2, 3, 4, 5, 0, 1]
    assert found.bias.shape == (3, 1, 1, 3, 5)
    # The second row's only token sees the prefix and itself.
    assert found.bias[1, 0, 0, 0].isfinite().tolist() == [True, True, True, False, False]


# --- layers that are not plain


def _dropout(found: PeftModel) -> None:
    for module in found.modules():
        if hasattr(module, "lora_dropout") and TRAINED in module.lora_dropout:  # type: ignore[operator]
            module.lora_dropout[TRAINED] = torch.nn.Dropout(0.0)  # type: ignore[index]


def _two_adapters(found: PeftModel) -> None:
    found.add_adapter("stacked", found.peft_config[TRAINED])
    activate(found)


@pytest.mark.parametrize("change", [_dropout, _two_adapters])
def test_layers_of_another_kind_stay_pefts(change: object) -> None:
    given, expected_model, found_model = rows(12), model(), model()
    for one in (expected_model, found_model):
        change(one)  # type: ignore[operator]
    with fast(found_model):
        lora = [m for m in found_model.modules() if hasattr(m, "lora_A")]
        assert not any("forward" in vars(module) for module in lora)
    logps, expected = plain(expected_model, given)
    ours, found = quick(found_model, given)
    torch.testing.assert_close(ours, logps, rtol=0, atol=2e-5)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-4 * float(value.abs().max() + 1e-9))


@pytest.fixture(scope="module")
def broad(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide(tiny_llama, tmp_path_factory.mktemp("fast") / "wide")


def passes(folder: Path, quantization: str) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Log-probabilities and gradients of the same adapter on ``folder``, without and with `fast`."""
    given = [Encoded(str(i), (1, 3, 5, 6 + i), (7 + i, 8, 9)) for i in range(4)]
    found = []
    for context in (lambda _: nullcontext(), fast):
        one = attach(load_base(folder, quantization).model, rank=4, alpha=8, seed=1)
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(4))
        one.train()
        with context(one):
            hidden, targets, head = answer_hidden(one, collate(given, 0))
            logps = token_logprobs(head(hidden), targets)
            weighed(logps).backward()
        found.append((logps.detach(), gradients(one)))
    return found


@pytest.mark.parametrize("quantization", ["bf16", "nf4"])
def test_low_precision_differs_by_rounding_alone(broad: Path, quantization: str) -> None:
    """LoRA's products run in bf16 here and in float32 in PEFT: bf16's 8 bits of difference, no more."""
    (expected, grads), (ours, our_grads) = passes(broad, quantization)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0.05)
    for name, value in grads.items():
        cosine = torch.nn.functional.cosine_similarity(our_grads[name].flatten(), value.flatten(), dim=0)
        assert cosine > 0.99, name
    assert all(value.dtype == torch.float32 for value in our_grads.values())


@pytest.mark.parametrize("quantization", ["bf16", "nf4"])
def test_in_float32_the_weights_are_those_of_the_layers_own_forward(
    broad: Path, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4-bit weights are unpacked to float32, not by way of bf16: what is trained on is what is audited."""
    monkeypatch.setenv("EFFACE_COMPUTE", "fp32")
    (expected, grads), (ours, our_grads) = passes(broad, quantization)
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)
    # bitsandbytes' own backward does go by way of bf16.
    room = 2e-4 if quantization == "bf16" else 1e-2
    for name, value in grads.items():
        scale = float(value.abs().max() + 1e-9)
        torch.testing.assert_close(our_grads[name], value, rtol=0, atol=room * scale, msg=name)
