"""`adapter_config.json` of a foreign LoRA: the keys that decide what it computes, and nothing that does more.

`base_model_name_or_path` and `revision` are whatever their author wrote: they are checked to be text and then
left alone. Which base an adapter belongs to is what the caller says and what the shapes allow.

Initialisations that change the base when the adapter is loaded (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) or the
layer (MiCA) are refused: on another host PEFT would subtract them from the base a second time. Saved with
PEFT's `path_initial_model_for_weight_conversion` they are plain LoRA of twice the rank and say
`"init_lora_weights": true`: those are taken like any other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from .canon import parse
from .errors import RegistryError
from .peft_patterns import Pattern, is_bounded, pattern
from .plain_files import Source

SOURCE = Source("adapter_config.json", "Save the adapter again with PEFT's save_pretrained.")

_READ = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out"),
        *("bias", "init_lora_weights", "target_modules", "exclude_modules", "layers_to_transform"),
        *(
            "base_model_name_or_path",
            "revision",
            "task_type",
            "peft_version",
            "auto_mapping",
            "megatron_core",
        ),
    }
)
_IGNORED = frozenset({"inference_mode", "lora_dropout", "runtime_config", "qalora_group_size", "eva_config"})
"""These change nothing that a finished adapter computes."""

_OFF_BY_NULL = re.compile(r"use_\w+|(?!loftq_)\w+_config|alora_invocation_tokens", re.ASCII)
"""Options that PEFT switches on by being there: for these an empty list or object is not off."""

_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
_TEXTS = ("base_model_name_or_path", "revision", "task_type", "peft_version")
_LIBRARY = re.compile(r"transformers(\.\w{1,100}){0,8}", re.ASCII)
_NAME = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)
_LARGEST_RANK, _LARGEST_ALPHA, _LONGEST_TEXT, _MOST_NAMES = 2**20, 1e9, 4096, 2**17


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """A plain LoRA (arXiv 2106.09685; rsLoRA 2312.03732): what of its config its weights must agree with."""

    r: int
    lora_alpha: float
    rank_pattern: tuple[tuple[Pattern, int], ...]
    alpha_pattern: tuple[tuple[Pattern, float], ...]
    use_rslora: bool
    target_modules: frozenset[str] | None
    """None for `all-linear` or a regular expression, which is taken at its word."""
    exclude_modules: frozenset[str]
    layers: frozenset[int] | None
    base: str | None
    """What its author calls the base; a digest where efface made it."""


def parse_config(data: bytes) -> LoraConfig:
    """Read and check a config. Raises InvalidInput for anything but a plain LoRA on linear layers."""
    raw = _object(data)
    _check_plain(raw)
    _check_texts(raw)
    _flag(raw, "fan_in_fan_out")
    return LoraConfig(
        r=_rank(raw.get("r")),
        lora_alpha=_alpha(raw.get("lora_alpha")),
        rank_pattern=tuple((key, _rank(value)) for key, value in _patterns(raw, "rank_pattern")),
        alpha_pattern=tuple((key, _alpha(value)) for key, value in _patterns(raw, "alpha_pattern")),
        use_rslora=_flag(raw, "use_rslora"),
        target_modules=_targets(raw.get("target_modules")),
        exclude_modules=_names(raw.get("exclude_modules") or [], "exclude_modules"),
        layers=_layers(raw.get("layers_to_transform")),
        base=raw.get("base_model_name_or_path"),
    )


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = parse(data.decode("utf-8"))
    except (UnicodeDecodeError, RegistryError) as error:
        raise SOURCE.bad("a JSON object", "no JSON") from error
    if not isinstance(value, dict):
        raise SOURCE.bad("a JSON object", "other JSON")
    return cast("dict[str, Any]", value)


def _check_plain(raw: Mapping[str, Any]) -> None:
    if raw.get("peft_type") != "LORA":
        raise SOURCE.bad('peft_type "LORA"', "another type")
    if raw.get("bias", "none") != "none":
        raise SOURCE.bad("a plain LoRA", "bias switched on")
    init = raw.get("init_lora_weights", True)
    if not any(init is known or (isinstance(init, str) and init == known) for known in _INITS):
        raise SOURCE.bad("init_lora_weights that leave the base alone", "another initialisation")
    on = sorted(name for name, value in raw.items() if name not in _READ | _IGNORED and _is_on(name, value))
    if on:
        shown = ", ".join(ascii(name)[1:-1][:40] for name in on[:5])
        raise SOURCE.bad("a plain LoRA", f"{shown} switched on")


def _is_on(name: str, value: Any) -> bool:
    off_only_by_null = _OFF_BY_NULL.fullmatch(name) is not None
    return not (value is None or value is False) if off_only_by_null else bool(value)


def _check_texts(raw: Mapping[str, Any]) -> None:
    for name in _TEXTS:
        value = raw.get(name)
        if value is not None and (not isinstance(value, str) or len(value) > _LONGEST_TEXT):
            raise SOURCE.bad(f"{name} as text or null", "another value")
    if raw.get("megatron_core") not in (None, "megatron.core"):
        raise SOURCE.bad("the megatron_core that PEFT writes", "another module, which PEFT would import")
    mapping = raw.get("auto_mapping")
    if mapping is not None and not _is_auto_mapping(mapping):
        raise SOURCE.bad("auto_mapping to a class of transformers", "another, which PEFT would import")


def _is_auto_mapping(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    library = cast("dict[str, Any]", value).get("parent_library")
    return isinstance(library, str) and _LIBRARY.fullmatch(library) is not None


def _rank(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _LARGEST_RANK:
        raise SOURCE.bad(f"ranks that are whole numbers from 1 to {_LARGEST_RANK}", "another value")
    return value


def _alpha(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 < value <= _LARGEST_ALPHA:
        raise SOURCE.bad("a lora_alpha and alpha_pattern that are finite and above 0", "another value")
    return float(value)


def _flag(raw: Mapping[str, Any], name: str) -> bool:
    value = raw.get(name, False)
    if not isinstance(value, bool):
        raise SOURCE.bad(f"{name} as true or false", "another value")
    return value


def _patterns(raw: Mapping[str, Any], name: str) -> list[tuple[Pattern, Any]]:
    value = raw.get(name)
    if value is None:
        return []
    if not isinstance(value, dict):
        raise SOURCE.bad(f"{name} as an object", "another value")
    entries = cast("dict[str, Any]", value)
    found = [(made, item) for key, item in entries.items() if (made := pattern(key))]
    if len(found) != len(entries):
        raise SOURCE.bad(f"{name} keyed by module names", "a regular expression")
    return found


def _targets(value: Any) -> frozenset[str] | None:
    if isinstance(value, str):
        if value != "all-linear" and not is_bounded(value):
            raise SOURCE.bad("target_modules as a list of module names", "an expression that may never end")
        return None
    names = _names(value, "target_modules")
    if not names:
        raise SOURCE.bad("at least one of target_modules", "none")
    return names


def _names(value: Any, name: str) -> frozenset[str]:
    fault = SOURCE.bad(f"{name} as a list of module names", "another value")
    if not isinstance(value, list) or len(cast("list[Any]", value)) > _MOST_NAMES:
        raise fault
    items = cast("list[Any]", value)
    if not all(isinstance(item, str) and len(item) <= 512 and _NAME.fullmatch(item) for item in items):
        raise fault
    return frozenset(items)


def _layers(value: Any) -> frozenset[int] | None:
    """None when every layer is meant: PEFT takes null and the empty list for that."""
    numbers = cast("list[Any]", value if isinstance(value, list) else [] if value is None else [value])
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise SOURCE.bad("layers_to_transform as whole numbers", "another value")
    return frozenset(numbers) or None
