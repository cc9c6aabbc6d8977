"""``adapter_config.json`` of a PEFT LoRA folder: the fields that decide what an adapter computes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from .errors import InvalidAdapter
from .patterns import unsafe

_READ = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules"),
        *("base_model_name_or_path", "revision", "task_type", "fan_in_fan_out", "bias", "init_lora_weights"),
    }
)
# These change nothing that a finished adapter computes: training, bookkeeping, or visible in tensor names.
_IGNORED = frozenset(
    {
        *(
            "auto_mapping",
            "peft_version",
            "inference_mode",
            "lora_dropout",
            "megatron_core",
            "runtime_config",
        ),
        *("qalora_group_size", "exclude_modules", "layers_to_transform", "layers_pattern", "eva_config"),
    }
)
# The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, MiCA) change the base or the layer when loaded.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
_LARGEST_ALPHA = 1e9


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """A plain LoRA configuration (arXiv 2106.09685; rsLoRA 2312.03732) with PEFT's field names.

    ``base_model_name_or_path`` and ``revision`` are None where PEFT did not know them.
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...] | str
    base_model_name_or_path: str | None
    revision: str | None
    task_type: str | None
    fan_in_fan_out: bool

    def scaling(self, rank: int, alpha: float) -> float:
        """PEFT's factor before B·A: alpha/rank, or alpha/√rank with rsLoRA."""
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, module: str) -> bool:
        """Whether ``target_modules`` names ``module``; a regular expression is taken at its word, not run."""
        if isinstance(self.target_modules, str):
            return True
        return any(module == name or module.endswith(f".{name}") for name in self.target_modules)


def parse_config(text: bytes, where: str) -> AdapterConfig:
    """Read and check the JSON of a config; ``where`` names the file in errors.

    Raises `InvalidAdapter` for broken JSON, another ``peft_type``, a wrong type, and every option that makes
    the adapter more than ``scaling·B·A`` on linear layers (DoRA, biases, ``modules_to_save``, …).
    """
    raw = _object(text, where)
    fields = _Fields(raw, where)
    fields.only_plain_lora()
    return AdapterConfig(
        r=fields.rank("r", raw.get("r")),
        lora_alpha=fields.alpha("lora_alpha", raw.get("lora_alpha")),
        use_rslora=fields.flag("use_rslora"),
        rank_pattern={key: fields.rank(key, value) for key, value in fields.pattern("rank_pattern")},
        alpha_pattern={key: fields.alpha(key, value) for key, value in fields.pattern("alpha_pattern")},
        target_modules=fields.target_modules(),
        base_model_name_or_path=fields.text("base_model_name_or_path"),
        revision=fields.text("revision"),
        task_type=fields.text("task_type"),
        fan_in_fan_out=fields.flag("fan_in_fan_out"),
    )


def config_bytes(config: AdapterConfig) -> bytes:
    """``config`` as canonical JSON for PEFT and vLLM: sorted keys, ASCII, only what decides the result."""
    targets = config.target_modules
    fields = {
        "alpha_pattern": {key: _plain(value) for key, value in config.alpha_pattern.items()},
        "base_model_name_or_path": config.base_model_name_or_path,
        "bias": "none",
        "fan_in_fan_out": config.fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": _plain(config.lora_alpha),
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": dict(config.rank_pattern),
        "revision": config.revision,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "task_type": config.task_type,
        "use_dora": False,
        "use_rslora": config.use_rslora,
    }
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode("ascii")


@dataclass(frozen=True, slots=True)
class _Fields:
    """The raw JSON object with checks that name the file, the key, what was expected and what came."""

    raw: Mapping[str, object]
    where: str

    def fail(
        self, key: str, expected: str, came: object, fix: str = "save the adapter again with PEFT"
    ) -> NoReturn:
        raise InvalidAdapter(f"{self.where}: expected {key} to be {expected}, got {_shown(came)}; {fix}")

    def only_plain_lora(self) -> None:
        if self.raw.get("peft_type") != "LORA":
            self.fail("peft_type", "'LORA'", self.raw.get("peft_type"), "only LoRA adapters can be stacked")
        if self.raw.get("bias", "none") != "none":
            self.fail("bias", "'none'", self.raw["bias"], "a bias is no low-rank update; train without")
        init = self.raw.get("init_lora_weights", True)
        if not any(init is known or (isinstance(init, str) and init == known) for known in _INITS):
            self.fail(
                "init_lora_weights",
                f"one of {_INITS}",
                init,
                "convert it to plain LoRA when saving with PEFT",
            )
        for key in sorted(set(self.raw) - _READ - _IGNORED):
            if self.raw[key]:
                self.fail(
                    key, "absent or off", self.raw[key], "efface composes plain LoRA on linear layers only"
                )

    def rank(self, key: str, value: object) -> int:
        if type(value) is not int or value < 1:
            self.fail(key, "a rank (a whole number of at least 1)", value)
        return value

    def alpha(self, key: str, value: object) -> float:
        if type(value) not in (int, float) or not abs(cast(float, value)) <= _LARGEST_ALPHA:
            self.fail(key, "an alpha (a finite number)", value)
        return float(cast(float, value))

    def flag(self, key: str) -> bool:
        value = self.raw.get(key, False)
        if not isinstance(value, bool):
            self.fail(key, "true or false", value)
        return value

    def text(self, key: str) -> str | None:
        value = self.raw.get(key)
        if value is not None and not isinstance(value, str):
            self.fail(key, "text or null", value)
        return value

    def pattern(self, key: str) -> list[tuple[str, object]]:
        value: object = self.raw.get(key) or {}
        if not isinstance(value, dict):
            self.fail(key, "an object of module names", value)
        entries = cast(dict[str, object], value)
        for name in entries:
            reason = unsafe(name)
            if reason:
                self.fail(key, "keyed by module names", name, f"the key {reason}; write one key per module")
        return list(entries.items())

    def target_modules(self) -> tuple[str, ...] | str:
        value = self.raw.get("target_modules")
        if isinstance(value, str) and value:
            return value
        if not isinstance(value, list) or not value:
            self.fail("target_modules", "a list of module names, or a pattern", value)
        names = cast(list[object], value)
        texts = [name for name in names if isinstance(name, str) and name]
        if len(texts) != len(names):
            self.fail("target_modules", "a list of module names", value)
        return tuple(sorted(set(texts)))


def _object(text: bytes, where: str) -> dict[str, object]:
    try:
        value: Any = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(
            f"{where}: expected JSON, got {error}; save the adapter again with PEFT"
        ) from error
    if not isinstance(value, dict):
        raise InvalidAdapter(
            f"{where}: expected a JSON object, got {_shown(value)}; save the adapter again with PEFT"
        )
    return cast(dict[str, object], value)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) else number


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
