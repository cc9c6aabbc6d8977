"""Small LoRA folders written by hand (not by efface), for the tests of several packages."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SIZES = {  # module -> (in_features, out_features)
    "model.layers.0.self_attn.q_proj": (5, 7),
    "model.layers.0.self_attn.v_proj": (5, 3),
    "model.layers.1.self_attn.q_proj": (5, 7),
    "lm_head": (4, 6),
    "other.lm_head": (4, 6),  # ends like the one before: a plain pattern key cannot tell them apart
}
BASE = "tests/tiny-base"


@dataclass(frozen=True)
class Spec:
    """What an adapter on disk is to be: rank and alpha per module, and how its config says so."""

    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    seed: int = 0
    use_rslora: bool = False
    dtype: torch.dtype = torch.float32
    extra: Mapping[str, Any] = field(default_factory=dict)

    def scaling(self, module: str) -> float:
        rank = self.ranks[module]
        return self.alphas[module] / (math.sqrt(rank) if self.use_rslora else rank)

    def tensors(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        made: dict[str, torch.Tensor] = {}
        for module, rank in sorted(self.ranks.items()):
            wide, tall = SIZES[module]
            for side, shape in (("A", (rank, wide)), ("B", (tall, rank))):
                values = torch.randn(shape, generator=generator).to(self.dtype)
                made[f"base_model.model.{module}.lora_{side}.weight"] = values
        return made

    def delta(self, module: str) -> torch.Tensor:
        """s·B·A in float64; zeros where the module is not adapted."""
        wide, tall = SIZES[module]
        if module not in self.ranks:
            return torch.zeros(tall, wide, dtype=torch.float64)
        tensors = self.tensors()
        a, b = (tensors[f"base_model.model.{module}.lora_{side}.weight"].double() for side in "AB")
        return self.scaling(module) * (b @ a)

    def config(self) -> dict[str, Any]:
        """Every rank and alpha as an anchored pattern; the defaults are values that no module has."""
        return {
            "peft_type": "LORA",
            "base_model_name_or_path": BASE,
            "task_type": "CAUSAL_LM",
            "r": 99,
            "lora_alpha": 98,
            "use_rslora": self.use_rslora,
            "rank_pattern": {f"^{name}": rank for name, rank in self.ranks.items()},
            "alpha_pattern": {f"^{name}": alpha for name, alpha in self.alphas.items()},
            "target_modules": list(self.ranks),
            "bias": "none",
            **self.extra,
        }

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        save_file(self.tensors(), folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(self.config()))
        return folder


def plain(rank: int = 2, alpha: float = 4, seed: int = 0, **changes: Any) -> Spec:
    """An ordinary adapter on two modules, with ``r`` and ``lora_alpha`` instead of patterns."""
    names = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")
    config = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {},
        "alpha_pattern": {},
        **changes.pop("extra", {}),
    }
    return Spec(dict.fromkeys(names, rank), dict.fromkeys(names, alpha), seed, extra=config, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
