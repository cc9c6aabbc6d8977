"""Render: a set of adapters → one LoRA folder that a server can load.

vLLM, SGLang and TGI route a request to one adapter, so a stack is composed beforehand. A rendered folder is
one version: a new path and name each time, never rewritten, kept as long as any server has it registered
(vLLM dies when the files of a registered adapter vanish, and reads changed ones without being told).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..adapters.compose import Part, Stack, plan, write
from ..adapters.compress import Factors, reduced, write_factors
from ..adapters.errors import AdapterError, CompositionError
from ..adapters.folder import digest_files, read_adapter
from ..adapters.staging import new_folder, require_free
from ..registry import Composition, Registry, Render, adapter_folder, get_adapter, parse_render
from .names import is_safe
from .slots import VLLM_RANKS, least_slot


class RenderError(AdapterError):
    """A composition that cannot be served: its name, its rank, or what came back from the disk."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A LoRA folder ready to load; ``slot_rank`` is the least ``--max-lora-rank`` of vLLM that holds it (None for what
    was not rendered for a server).

    ``error`` is its relative Frobenius error against the exact stack; None when it is that stack.
    """

    path: Path
    name: str
    rank: int
    slot_rank: int | None
    digest: str
    files: Mapping[str, str]
    error: float | None = None


def render(
    parts: Sequence[Part],
    out: Path,
    *,
    how: str = "cat",
    max_rank: int | None = None,
    for_server: bool = True,
) -> Rendered:
    """Compose ``parts`` into the new folder ``out``, read it back, check it, and only then make it visible.

    ``out.name`` is the adapter's name at the server. ``how``: see `efface.registry.renders` (`live` is written as
    `cat`, to the same logits). ``max_rank`` is the server's ``--max-lora-rank`` (vLLM's largest by default). What no
    server loads has no slot to fit: a `live` one, and what is only measured or trained on (not ``for_server``).
    Raises what `compose` raises, and `RenderError`; then nothing is left on disk.
    """
    require_safe_name(out.name)
    require_free(out)
    asked = parse_render(how)
    stack = plan(parts)
    if asked.exact:
        kept, error, rank = None, None, stack.rank
    else:
        kept, error = approximated(stack, asked)
        rank = max(a.shape[0] for a, _ in kept.values())
    slot = slot_rank(rank, max_rank=max_rank) if for_server and asked.method != "live" else None
    with new_folder(out) as staging:
        files = write(stack, staging) if kept is None else write_factors(stack, kept, staging)
        _require_same(staging, files)
    return Rendered(out, out.name, rank, slot, digest_files(files), files, error)


def folder_parts(registry: Registry, composition: Composition) -> list[Part]:
    """The folders of ``composition`` with its weights, each on the base that the registry recorded for it."""
    return [
        Part(adapter_folder(registry, part.adapter), part.weight, get_adapter(registry, part.adapter).base)
        for part in composition.parts
    ]


def approximated(stack: Stack, asked: Render) -> tuple[Factors, float]:
    """The factors of an approximate render, and their relative error against ``stack``; raises `CompositionError`."""
    if asked.density is not None and asked.rank is not None:
        from ..adapters.approximate import merged

        return merged(stack, asked.method, density=asked.density, rank=asked.rank)
    if asked.exact:
        raise CompositionError(f"expected an approximate render, got {asked.method}; it is written as it is")
    return reduced(stack, rank=asked.rank, error=None if asked.error is None else float(asked.error))


def slot_rank(rank: int, *, max_rank: int | None = None) -> int:
    """The least of `VLLM_RANKS` that holds ``rank``; `RenderError` when none does, or above ``max_rank``."""
    most = VLLM_RANKS[-1]
    largest = most if max_rank is None else min(max_rank, most)
    slot = least_slot(rank, largest)
    if slot is None:
        raise RenderError(
            f"expected a rank from 1 to {largest}, got {rank}; render it as svd:{largest}, which fits (--render "
            f"svd:{largest}: approximate, and audited as such)"
            + (
                f", or raise --max-lora-rank, if the server takes more (vLLM: up to {most})"
                if largest < most
                else ""
            )
        )
    return slot


def require_safe_name(name: str) -> None:
    """Raise `RenderError` unless ``name`` is letters, digits and ``. _ @ -`` only, and not ``.`` or ``..``.

    Names travel in requests, and vLLM's resolver joins them to a directory: ``../x`` would leave it.
    """
    if not is_safe(name):
        raise RenderError(
            f"expected a folder name of letters, digits and . _ @ - (at most 128), got {name[:140]!r}; "
            "for example payments@v7"
        )


def _require_same(folder: Path, files: Mapping[str, str]) -> None:
    """Read ``folder`` as any stranger's adapter, and compare it with what was meant to be written."""
    came = read_adapter(folder)
    if dict(came.files) != dict(files):
        raise RenderError(
            f"expected {dict(files)} on disk, got {dict(came.files)}; an adapter changed meanwhile, or the "
            "disk is faulty: check the adapters and render again"
        )
