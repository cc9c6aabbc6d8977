"""Attach, load, switch and detach LoRA adapters (arXiv 2106.09685) on a frozen base.

The one rule: adapters are never merged in place. Merging and unmerging changes 62 % of a matrix's entries
even in fp32, so a rollback that subtracts is no rollback. Here a rollback chooses another adapter.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from .errors import AdapterError, BaseMismatch, ModelError
from .folder import AdapterFolder, read_adapter
from .lora_files import CONFIG_NAME, WEIGHTS_NAME
from .peft_config import AdapterConfig, config_bytes
from .tensors import safetensors_bytes, write_atomic


def attach(
    model: PreTrainedModel,
    *,
    rank: int = 16,
    alpha: int = 32,
    targets: str | list[str] = "all-linear",
    seed: int = 0,
) -> PeftModel:
    """Add a fresh trainable adapter: A from PEFT's Kaiming initialisation under ``seed``, B zero.

    The output is therefore the base's own until the first step. LoRA weights are float32 whatever the base.
    """
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(
            f"no LoRA layer could be attached to {targets!r}: {linear_names(model)} exist"
        ) from error
    return _as_peft(peft_model)


def load(model: PreTrainedModel, folder: Path, *, name: str = "efface") -> PeftModel:
    """Put the adapter in ``folder`` (a PEFT folder) on ``model``, for inference only.

    Raises :class:`InvalidAdapter` for a broken folder, and :class:`BaseMismatch` for one whose layers are not
    the model's, before ``model`` is touched: PEFT would leave half-loaded layers on it.
    """
    _require_fit(model, read_adapter(folder))
    loaded = PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=False)
    loaded.eval()
    assert_unmerged(loaded)
    return loaded


def save(model: PeftModel, folder: Path, *, base: str) -> None:
    """Write the active adapter as a canonical PEFT folder: the same weights give the same bytes anywhere.

    ``base`` (a fingerprint digest) goes into ``base_model_name_or_path`` instead of a path of this machine.
    Reads the LoRA parameters alone: ``state_dict()`` would touch the 4-bit base. Raises
    :class:`InvalidAdapter`, before anything is written, for weights that are not finite.
    """
    name = str(model.active_adapter)
    suffix = f".{name}.weight"
    tensors = {
        key.removesuffix(suffix) + ".weight": parameter.detach().cpu().contiguous()
        for key, parameter in model.named_parameters()
        if "lora_" in key and key.endswith(suffix)
    }
    trained: Any = model.peft_config[name]
    config = AdapterConfig(
        r=trained.r,
        lora_alpha=float(trained.lora_alpha),
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
    weights = safetensors_bytes(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / CONFIG_NAME, [config_bytes(config)])
    write_atomic(folder / WEIGHTS_NAME, [weights])


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


def assert_unmerged(model: torch.nn.Module) -> None:
    """Raise :class:`AdapterError` when any LoRA layer is merged: disabling it would alter the base."""
    merged = [name for name, m in model.named_modules() if isinstance(m, LoraLayer) and m.merged]
    if merged:
        raise AdapterError(
            f"{len(merged)} LoRA layers are merged into the base (first: {merged[0]}); unmerging is not exact. "
            "Load the base from its files again and do not merge in place"
        )


def linear_names(model: torch.nn.Module) -> str:
    """The target names that exist in ``model``, for error messages: ``down_proj, gate_proj, …``."""
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    return ", ".join(sorted(names - {"lm_head"}))


def _require_fit(model: torch.nn.Module, adapter: AdapterFolder) -> None:
    layers: dict[str, Any] = dict(model.named_modules())
    for name, lora in adapter.modules.items():
        layer = layers.get(name)
        size = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
        if size != (lora.a.shape[1], lora.b.shape[0]):
            raise BaseMismatch(
                f"{adapter.path}: expected a base whose {name} is {lora.a.shape[1]} -> {lora.b.shape[0]}, "
                f"got {size[0]} -> {size[1]}; give the base that the adapter was trained on"
            )


def _as_peft(model: Any) -> PeftModel:
    if not isinstance(model, PeftModel):
        raise ModelError(f"PEFT gave a {type(model).__name__} instead of a PeftModel")
    return model
