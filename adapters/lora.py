"""Attach, load, switch and detach LoRA adapters (arXiv 2106.09685) on a frozen base.

The one rule: adapters are never merged in place. Merging and unmerging changes 62 % of a matrix's entries
even in fp32, so a rollback that subtracts is no rollback. Here a rollback chooses another adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .errors import AdapterError, BaseMismatch, ModelError
from .folder import AdapterFolder, read_adapter
from .lora_files import CONFIG_NAME, WEIGHTS_NAME
from .peft_config import AdapterConfig, config_bytes
from .tensors import safetensors_bytes, write_atomic

Initialisation = Literal["default", "fila", "null_space", "contrast"]

# The adapter in training, the frozen one that it is stacked on, and the frozen start that it is a difference to.
TRAINED, STACKED, ANCHOR = "default", "stacked", "anchor"


def attach(
    model: PreTrainedModel,
    *,
    rank: int = 16,
    alpha: int = 32,
    targets: str | Sequence[str] = "all-linear",
    rslora: bool = False,
    stacked_on: Path | None = None,
    seed: int = 0,
) -> PeftModel:
    """Add a fresh trainable adapter: A from PEFT's Kaiming initialisation under ``seed``, B zero.

    The output is therefore the base's own until the first step. LoRA weights are float32 whatever the base.
    ``rslora`` scales by alpha/sqrt(rank) (arXiv 2312.03732). ``stacked_on``: a LoRA folder (a rendered stack)
    that is on as well, frozen; it belongs to the reference policy then, and `save` leaves it out.

    Raises :class:`ModelError` for targets that the model does not have, each of them, and what `load` raises.
    """
    _require_targets(model, targets)
    if stacked_on is not None:
        require_fit(model, read_adapter(stacked_on))
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=rslora,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        peft_model = _as_peft(get_peft_model(model, config))
    except ValueError as error:
        raise ModelError(
            f"no LoRA layer could be attached to {targets!r}: {', '.join(linear_names(model))} exist"
        ) from error
    if stacked_on is not None:
        peft_model.load_adapter(str(stacked_on), adapter_name=STACKED, is_trainable=False)
    activate(peft_model)
    return peft_model


def activate(model: PeftModel) -> None:
    """Switch on the adapter in training with whatever it stands on, and let only that one learn."""
    on = [name for name in (STACKED, ANCHOR, TRAINED) if name in model.peft_config]
    tuner: Any = model.base_model
    tuner.set_adapter(on)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(f".{TRAINED}." in name)


def load(model: PreTrainedModel, folder: Path, *, name: str = "efface") -> PeftModel:
    """Put the adapter in ``folder`` (a PEFT folder) on ``model``, for inference only.

    Raises :class:`InvalidAdapter` for a broken folder, and :class:`BaseMismatch` for one whose layers are not
    the model's, before ``model`` is touched: PEFT would leave half-loaded layers on it.
    """
    require_fit(model, read_adapter(folder))
    loaded = PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=False)
    loaded.eval()
    assert_unmerged(loaded)
    return loaded


def save(model: PeftModel, folder: str | Path, *, base: str) -> None:
    """Write the trained adapter as a canonical PEFT folder: the same weights give the same bytes anywhere.

    ``base`` (a fingerprint digest) goes into ``base_model_name_or_path`` instead of a path of this machine.
    What it was stacked on is left out. One that started from an anchor is written as the difference to it, of
    twice the rank: the base stays what it is.
    Reads the LoRA parameters alone: ``state_dict()`` would touch the 4-bit base. Raises
    :class:`InvalidAdapter`, before anything is written, for weights that are not finite.
    """
    name = TRAINED if TRAINED in model.peft_config else str(model.active_adapter)
    tensors, wider = lora_tensors(model, name), 1
    trained: Any = model.peft_config[name]
    if ANCHOR in model.peft_config:
        anchor, wider = lora_tensors(model, ANCHOR), 2
        # s (BA - B0 A0) is one LoRA of rank 2r: A over A0, B beside -B0 (which is how the anchor holds it).
        tensors = {
            key: torch.cat([value, anchor[key]], dim=0 if ".lora_A." in key else 1).contiguous()
            for key, value in tensors.items()
        }
    scaling = wider**0.5 if trained.use_rslora else wider
    config = AdapterConfig(
        r=wider * trained.r,
        lora_alpha=float(scaling * trained.lora_alpha),
        use_rslora=bool(trained.use_rslora),
        rank_pattern={},
        alpha_pattern={},
        target_modules=tuple(
            sorted({key.split("base_model.model.", 1)[1].rsplit(".lora_", 1)[0] for key in tensors})
        ),
        base_model_name_or_path=base,
        revision=None,
        task_type="CAUSAL_LM",
        fan_in_fan_out=False,
    )
    weights, folder = safetensors_bytes(tensors), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / CONFIG_NAME, [config_bytes(config)])
    write_atomic(folder / WEIGHTS_NAME, [weights])


def lora_tensors(model: PeftModel, name: str = TRAINED) -> dict[str, Tensor]:
    """The weights of adapter ``name`` by their names in a PEFT file, on the CPU; nothing else is touched."""
    suffix = f".{name}.weight"
    return {
        key.removesuffix(suffix) + ".weight": parameter.detach().cpu().contiguous()
        for key, parameter in model.named_parameters()
        if "lora_" in key and key.endswith(suffix)
    }


def detach(model: PeftModel) -> PreTrainedModel:
    """Take every adapter off and give the bare base back (the same module objects as before)."""
    assert_unmerged(model)
    base: Any = model.unload()
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if attribute in vars(base):
            delattr(base, attribute)
    return base


@contextmanager
def disabled(model: PreTrainedModel | PeftModel) -> Generator[None]:
    """Run as the base alone: the reference policy of a first request. A plain model passes through."""
    if not isinstance(model, PeftModel):
        yield
        return
    assert_unmerged(model)
    with model.disable_adapter():
        yield


@contextmanager
def reference_policy(model: PeftModel) -> Generator[None]:
    """Run as what the adapter in training is compared with: the base and the adapters it is stacked on.

    Not "adapters off": in a stack that is another policy (the trap of trl #4723 and #1193).
    """
    assert_unmerged(model)
    tuner: Any = model.base_model
    try:
        if STACKED in model.peft_config:
            tuner.set_adapter([STACKED], inference_mode=True)
            yield
        else:
            with model.disable_adapter():
                yield
    finally:
        # PEFT switches gradients on for all that it switches on again, an anchor included.
        if TRAINED in model.peft_config:
            activate(model)


def reference_head(head: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The output head of the reference policy, also where ``head`` has adapters on it."""
    if not isinstance(head, LoraLayer):
        return head
    plain: Any = head.base_layer
    if STACKED not in head.lora_A:
        return plain
    a: Any = head.lora_A[STACKED]
    b: Any = head.lora_B[STACKED]

    def stacked(x: Tensor) -> Tensor:
        y = plain(x)
        return y + (b(a(x.to(a.weight.dtype))) * head.scaling[STACKED]).to(y.dtype)

    return stacked


def assert_unmerged(model: torch.nn.Module) -> None:
    """Raise :class:`AdapterError` when any LoRA layer is merged: disabling it would alter the base."""
    merged = [name for name, m in model.named_modules() if isinstance(m, LoraLayer) and m.merged]
    if merged:
        raise AdapterError(
            f"{len(merged)} LoRA layers are merged into the base (first: {merged[0]}); unmerging is not exact. "
            "Load the base from its files again and do not merge in place"
        )


def linear_names(model: torch.nn.Module) -> tuple[str, ...]:
    """The target names that exist in ``model``: ``down_proj, gate_proj, …``."""
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    }
    return tuple(sorted(names - {"lm_head"}))


def _require_targets(model: torch.nn.Module, targets: str | Sequence[str]) -> None:
    """PEFT passes over a name that matches nothing as long as another one does."""
    if isinstance(targets, str):
        return  # "all-linear" or a pattern: PEFT itself refuses one that matches nothing
    kinds = (torch.nn.Linear, Conv1D)
    modules = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    absent = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in modules)]
    if absent or not targets:
        known = linear_names(model)
        near = get_close_matches(absent[0], known, 1) if absent else []
        raise ModelError(
            f"expected target modules of this model, got {', '.join(map(repr, absent)) or 'none'}: "
            f"{', '.join(known)} exist" + (f"; did you mean {near[0]!r}?" if near else "")
        )


def require_fit(model: torch.nn.Module, adapter: AdapterFolder) -> None:
    """Raise :class:`BaseMismatch` unless ``model`` has each layer of ``adapter``, in its size."""
    layers: dict[str, Any] = dict(model.named_modules())
    for name, lora in adapter.modules.items():
        size = sizes_of(layers.get(name))
        if size != (lora.a.shape[1], lora.b.shape[0]):
            raise BaseMismatch(
                f"{adapter.path}: expected a base whose {name} is {lora.a.shape[1]} -> {lora.b.shape[0]}, "
                f"got {size[0]} -> {size[1]}; give the base that the adapter was trained on"
            )


def sizes_of(layer: object) -> tuple[int | None, int | None]:
    """(in, out) features of a linear layer or a Conv1D; (None, None) for anything else."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    return getattr(layer, "in_features", None), getattr(layer, "out_features", None)


def _as_peft(model: Any) -> PeftModel:
    if not isinstance(model, PeftModel):
        raise ModelError(f"PEFT gave a {type(model).__name__} instead of a PeftModel")
    return model
