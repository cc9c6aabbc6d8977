"""What efface does inside vLLM: loaded by vLLM itself, in each of its processes (group ``vllm.general_plugins``).

Two repairs and a refusal, for faults that vLLM 0.32 has (each has a test against the real server):

1. CPU: rows of the base in a batch with LoRA rows got the adapter of the last slot (index -1 counts from the end).
2. ``load_inplace`` stuck to an adapter: its files were read again at every step.
3. An adapter with a NaN made every later answer of the server empty: it is refused at loading.

And a resolver, where ``EFFACE_CHANNELS`` names channels (see `inside`): the active release of one is loaded at its
first use, verified. Its name has the version: vLLM keeps what a resolver gave for good, so that a bare channel name
would stay at the release that was active first. `middleware` makes it the active one, request by request.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inside import Inside

_log = logging.getLogger("vllm.efface")
_DONE = "_efface"
RESOLVER = "@resolver"
"""Folder of what was resolved, in the registry's ``serving``; the other ones are named after hosts, which have no @."""


def register() -> None:
    """Entry point. Twice is once; what this vLLM does not have is named in the log and left alone.

    Raises RuntimeError, which stops the server, where `middleware` is meant to stand and would not be asked.
    """
    if os.environ.get("EFFACE_CHANNELS"):
        _require_python_frontend(os.environ)
    for repair in (_repair_base_rows, _repair_load_inplace, _refuse_non_finite):
        try:
            repair()
        except (ImportError, AttributeError) as error:
            _log.warning("efface: %s does not fit this vLLM (%s)", repair.__name__.strip("_"), error)
    if os.environ.get("EFFACE_CHANNELS"):
        _register_resolver()


def _require_python_frontend(environment: Mapping[str, str]) -> None:
    """vLLM's front end in Rust answers HTTP and gRPC without any middleware, by the base too."""
    if environment.get("VLLM_USE_RUST_FRONTEND", "0").strip() not in ("", "0"):
        raise RuntimeError(
            "expected vLLM's Python front end, in which efface's middleware stands before the base, got "
            "VLLM_USE_RUST_FRONTEND; unset it, or unset EFFACE_CHANNELS and keep everybody but the gateway away"
        )


def _repair_base_rows() -> None:
    """Inputs of rows without an adapter become 0: what comes of them is 0 whichever weights they meet."""
    from vllm.lora.ops.torch_ops import lora_ops  # pyright: ignore[reportMissingImports]
    from vllm.lora.punica_wrapper import punica_cpu  # pyright: ignore[reportMissingImports]

    for name in ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice"):
        repaired = _without_base_rows(getattr(lora_ops, name))
        for module in (lora_ops, punica_cpu):
            setattr(module, name, repaired)


def _without_base_rows(original: Callable[..., None]) -> Callable[..., None]:
    if hasattr(original, _DONE):
        return original

    @functools.wraps(original)
    def repaired(inputs: Any, weights: Any, output: Any, indices: Any, *rest: Any, **named: Any) -> None:
        base = (indices < 0).unsqueeze(-1)
        original(inputs.masked_fill(base, 0), weights, output, indices, *rest, **named)

    setattr(repaired, _DONE, True)
    return repaired


def _repair_load_inplace() -> None:
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels  # pyright: ignore[reportMissingImports]

    original = OpenAIServingModels.load_lora_adapter
    if hasattr(original, _DONE):
        return

    @functools.wraps(original)
    async def repaired(self: Any, request: Any, *rest: Any, **named: Any) -> Any:
        answer = await original(self, request, *rest, **named)
        if (held := self.lora_requests.get(request.lora_name)) is not None:
            held.load_inplace = False
        return answer

    setattr(repaired, _DONE, True)
    OpenAIServingModels.load_lora_adapter = repaired


def _refuse_non_finite() -> None:
    from vllm.lora.worker_manager import WorkerLoRAManager  # pyright: ignore[reportMissingImports]

    original = WorkerLoRAManager._load_adapter
    if hasattr(original, _DONE):
        return

    @functools.wraps(original)
    def checked(self: Any, lora_request: Any) -> Any:
        adapter = original(self, lora_request)
        for module, weights in adapter.loras.items():
            _require_finite(module, weights)
        return adapter

    setattr(checked, _DONE, True)
    WorkerLoRAManager._load_adapter = checked


def _require_finite(module: str, weights: Any) -> None:
    import torch

    for side in (weights.lora_a, weights.lora_b):
        for tensor in side if isinstance(side, list) else [side]:
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                raise ValueError(
                    f"expected finite LoRA weights, got NaN or infinity in {module}: one such request would spoil "
                    "every later answer of this server; make the adapter again"
                )


def _register_resolver() -> None:
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry  # pyright: ignore[reportMissingImports]

    from .inside import of

    settings = of(os.environ)
    if settings.registry is None:
        _log.info("efface: no EFFACE_REGISTRY, so nothing is loaded at first use")
        return
    find = functools.partial(resolve, settings, settings.registry)

    class ChannelResolver(LoRAResolver):  # pyright: ignore[reportUntypedBaseClass]
        """Loads the active release of a channel at its first use."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            """The request for ``lora_name``; None unless it is active, verified and its channel is listed."""
            del base_model_name  # a path on this host: the ledger knows bases by digest
            path = await asyncio.to_thread(find, lora_name)
            return None if path is None else LoRARequest(lora_name, 1, str(path))

    LoRAResolverRegistry.register_resolver("efface", ChannelResolver())


def resolve(settings: Inside, registry: str, name: str) -> Path | None:
    """The checked folder of the adapter ``name``; None unless it is what answers for a listed channel now.

    The name is compared with that of the active release and never joined to a path; files are compared with the
    digests in the ledger.
    """
    from ..registry import Registry, RegistryError
    from .errors import ServingError
    from .folders import Folders, Limits, check
    from .names import parse_name
    from .source import Source

    found = parse_name(name)
    if found is None or settings.active(found.channel) != name:
        return None
    try:
        with Registry.open(registry) as reg:
            folders = Folders(reg.root.absolute() / "serving" / RESOLVER, found.channel)
            source = Source(reg, found.channel)
            target = source.named(name)
            if name not in folders.names():
                with folders.new(name) as folder:
                    source.write(target, folder)
            check(folders.path(name), files=target.files, base=target.composition.base, limits=Limits())
            return folders.path(name)
    except (RegistryError, ServingError, OSError) as error:
        _log.warning("efface: %s is not loaded: %s", name, error)
    return None
