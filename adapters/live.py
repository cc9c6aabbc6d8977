"""Live: LoRA weights in and out of the layers of a live model, exactly as a fresh load would leave them.

PEFT's `hotswap_adapter` copies values into the tensors that are there. Measured with 0.21.2, it keeps the old rank and
alpha in every config (saving then writes another adapter), zeroes adapters whose names contain the new one's, does not
compare shapes, and takes NaN. Here a version gets its own key in every layer, built aside and then put in; another
version is another key, and going back is choosing the old one. Keys are of one length and no part of any layer's name:
PEFT finds adapters by substring.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from .errors import BaseMismatch, InvalidAdapter, ModelError
from .folder import AdapterFolder, a_key, b_key, canonical_config, read_adapter, tensor_specs
from .lora_files import CONFIG_NAME, WEIGHTS_NAME, open_tensors, unchanged
from .peft_config import config_bytes
from .tensors import digest_chunks, safetensors_chunks

_WRAP, _NONE = "efface-wrap", "efface-none"
Sizes = Mapping[str, tuple[int, int]]
"""(in_features, out_features) of each linear layer of a bare base, by its name."""
Layers = Mapping[str, nn.Module]
"""Every module of a base by its name there, wrapped or not: `layers_of`, which takes too long to ask at each swap."""


@dataclass(frozen=True, slots=True)
class Aside:
    """An adapter in memory, fit for the base it was read for and in no layer yet: A and B by the base's layer."""

    folder: AdapterFolder
    layers: Mapping[str, tuple[nn.Linear, nn.Linear]]


def layer_sizes(model: PreTrainedModel) -> Sizes:
    """The linear layers of the bare ``model``. Raises `ModelError` for one that has adapters on."""
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ModelError("expected a base without adapters, got one with LoRA layers on: detach them first")
    return {
        name: (int(module.in_features), int(module.out_features))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def read_aside(path: Path, layers: Layers, sizes: Sizes, *, digest: str | None, base: str | None) -> Aside:
    """Check the LoRA folder at ``path`` and build its layers beside the model, which is not touched.

    ``digest``: of the folder (`AdapterFolder.digest`), None to take what is there. ``base``: fingerprint digest of the
    model. The values built are those that were hashed, also when somebody writes to the folder meanwhile. Raises
    `InvalidAdapter` for a broken folder or another digest, `BaseMismatch` for another base or other layers.
    """
    folder = read_adapter(path)
    if digest is not None and folder.digest != digest:
        raise InvalidAdapter(
            f"{path}: expected adapter {digest}, got {folder.digest}; render or export the release again"
        )
    _require_base(folder, base)
    _require_sizes(folder, sizes)
    tensors = _tensors(folder)
    built = {
        name: (
            _linear(tensors[a_key(name)], layers[name]),
            _linear(tensors[b_key(name)], layers[name]),
        )
        for name in folder.modules
    }
    return Aside(folder, built)


def layers_of(model: PreTrainedModel | PeftModel) -> dict[str, nn.Module]:
    """Every module of the base by its name in the bare base, wrapped or not."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return dict(inner.named_modules())


def wrap(model: PreTrainedModel | PeftModel, layers: Layers, names: Sequence[str]) -> PeftModel:
    """Give each layer of ``names`` a place for adapters, none in it: the model computes what it did, bit for bit."""
    new = [name for name in names if not isinstance(layers[name], LoraLayer)]
    if isinstance(model, PeftModel) and not new:
        return model
    config = LoraConfig(r=1, target_modules=new, task_type="CAUSAL_LM", inference_mode=True)
    with torch.random.fork_rng(devices=[]):  # PEFT draws values for what is thrown away here
        if isinstance(model, PeftModel):
            model.add_adapter(_WRAP, config)
        else:
            model = PeftModel(model, config, adapter_name=_WRAP)
            turn_on(model, layers_of(model), None)
    take_out(model, layers_of(model), _WRAP)
    model.eval()
    return model


def put_in(model: PeftModel, layers: Layers, key: str, aside: Aside) -> None:
    """Put ``aside`` into its layers (which `wrap` has made ready) under ``key``, a new one; it is not active yet.

    Whole or not at all: whatever stops it half-way, nothing of ``key`` is left.
    """
    try:
        model.peft_config[key] = peft_config(aside.folder)
        for name, (a, b) in aside.layers.items():
            _fill(layers[name], key, a, b, aside.folder, name)
    except BaseException:
        take_out(model, layers, key)
        raise


def take_out(model: PeftModel, layers: Layers, key: str) -> None:
    """Remove ``key`` from every layer, and its config; its memory is free when nobody runs it any more.

    PEFT's own deletion would switch another adapter on.
    """
    for layer in lora_layers(layers):
        for place in (*layer.adapter_layer_names, *layer.other_param_names):
            held: Any = getattr(layer, place)
            if key in held:
                del held[key]
    model.peft_config.pop(key, None)


def turn_on(model: PeftModel, layers: Layers, key: str | None) -> None:
    """Let ``key`` alone answer; None: nothing but the base, until somebody turns another on."""
    tuner: Any = model.base_model
    if key is None:
        model.peft_config.setdefault(_NONE, LoraConfig(r=1, task_type="CAUSAL_LM", inference_mode=True))
    name = key or _NONE
    model.active_adapter = name
    for layer in lora_layers(layers):
        layer.set_adapter(name, inference_mode=True)
    tuner.active_adapter = name
    if key is not None:
        model.peft_config.pop(_NONE, None)


def lora_layers(layers: Layers) -> list[Any]:
    """Those with a place for adapters."""
    return [layer for layer in layers.values() if isinstance(layer, LoraLayer)]


def peft_config(folder: AdapterFolder) -> LoraConfig:
    """The PEFT config of ``folder`` as `efface` writes it: saving the model again gives the same adapter."""
    fields = json.loads(config_bytes(canonical_config(folder.config, folder.modules)))
    del fields["peft_type"]
    return LoraConfig(**fields)


def _fill(layer: Any, key: str, a: nn.Linear, b: nn.Linear, folder: AdapterFolder, name: str) -> None:
    lora = folder.modules[name]
    layer.r[key], layer.lora_alpha[key], layer.scaling[key] = lora.rank, lora.alpha, lora.scaling
    layer.use_rslora[key], layer.use_dora[key], layer.lora_bias[key] = folder.config.use_rslora, False, False
    layer.lora_dropout[key] = nn.Identity()
    layer.lora_A[key], layer.lora_B[key] = a, b


def _linear(value: Tensor, layer: nn.Module) -> nn.Linear:
    """float32 whatever the file and the base hold, as PEFT loads adapters; no random draw."""
    base: Any = layer.base_layer if isinstance(layer, LoraLayer) else layer
    made = _Given(value.shape[1], value.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(value.to(base.weight.device, torch.float32), requires_grad=False)
    return made.eval()


class _Given(nn.Linear):
    """A linear layer whose weight comes next: drawing one takes most of a swap's time."""

    def reset_parameters(self) -> None:
        """Nothing."""


def _tensors(folder: AdapterFolder) -> dict[str, Tensor]:
    """Copies of the values that `read_adapter` hashed. Raises `InvalidAdapter` when they are others by now."""
    specs = tensor_specs(folder.modules)
    with open_tensors(folder.path) as read:
        found = {name: read(name).clone() for name in specs}
    if not unchanged(folder.path / WEIGHTS_NAME, folder.mark):
        came = digest_chunks(safetensors_chunks(specs, found.__getitem__))
        if came != folder.files[WEIGHTS_NAME]:
            raise InvalidAdapter(
                f"{folder.path}: expected weights {folder.files[WEIGHTS_NAME]}, got {came}; somebody writes to the "
                "folder of a version: render a new one"
            )
    return found


def _require_base(folder: AdapterFolder, base: str | None) -> None:
    made_for = folder.config.base_model_name_or_path
    # Adapters that efface did not make name their base by id or path; their layers must still fit.
    if base is not None and made_for is not None and made_for.startswith("sha256:") and made_for != base:
        raise BaseMismatch(
            f"{folder.path / CONFIG_NAME}: expected an adapter for base {base}, got one for {made_for}; "
            "give the release of this base"
        )


def _require_sizes(folder: AdapterFolder, sizes: Sizes) -> None:
    for name, lora in folder.modules.items():
        asked = (lora.a.shape[1], lora.b.shape[0])
        if sizes.get(name) != asked:
            raise BaseMismatch(
                f"{folder.path}: expected a base whose {name} is {asked[0]} -> {asked[1]}, got {sizes.get(name)}; "
                "give the base that the adapter was trained on"
            )
