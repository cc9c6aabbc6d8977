"""Merge a composition into a checkpoint, shard by shard, on files: the base is read once, never changed.

    W' = W + Σ wᵢ·sᵢ·Bᵢ·Aᵢ   in float32, rounded once to the dtype of W

No model class is instantiated: memory is a matrix twice and some megabytes, or one shard quantized. Onto the weights as
they are, or onto what a quantized base computes with (``nf4``, ``int8``): an adapter that was trained and audited on a
quantized base belongs to those. What comes of it is written as it is, or quantized again as `transformers` stores it
(``requantize``). Either way the result is another model: audit it, at the precision it will be served in. Quantizing it
can bring back what was forgotten (arXiv 2410.16454).

What is hashed as the base is what was read to be merged, in the same pass: there is no moment at which the files could
be others. Words: the merged checkpoint *consolidates* only once the base is withdrawn. Whoever has both can subtract
them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from . import checkpoint_files, quantized_files
from .checkpoint_files import INDEX, Shard
from .compose import Part, Stack, plan, require_unchanged
from .errors import BaseMismatch, CompositionError, ModelError
from .merge_card import RECORD, Served, Verdict, describe, judged
from .merge_layout import (
    Digests,
    carry,
    new_layout,
    plain_config,
    same_layout,
    ties_head,
    write_config,
    write_index,
)
from .merge_values import Job, changes, source
from .model import Fingerprint, ModelFiles, fingerprint_of, model_files
from .quantized_files import as_computed, stored_bytes
from .staging import new_folder, require_free
from .tensors import DTYPES, Hashing, digest_file, write_atomic

__all__ = [
    "ONTO",
    "RECORD",
    "Merged",
    "Onto",
    "Served",
    "Verdict",
    "as_computed",
    "check_merge",
    "judged",
    "merge",
    "merging",
]

Onto = Literal["original", "nf4", "int8"]
ONTO: tuple[str, ...] = get_args(Onto)
OnBytes = Callable[[int], None]
_HEADS = ("lm_head", "embed_out")
_PREFIXES = ("model.", "transformer.", "gpt_neox.")
"""What a model with a head puts before the names of the model without one."""


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged checkpoint on disk. ``fingerprint`` is what it is as a base; ``base`` what it was made of.

    ``bytes`` are those of its weights, ``quantized`` the precision they are stored at: None as the base's.
    """

    path: Path
    base: Fingerprint
    fingerprint: Fingerprint
    modules: int
    bytes: int
    quantized: str | None = None


def merge(
    base: Path,
    parts: Sequence[Part],
    out: Path,
    *,
    onto: str = "original",
    requantize: str | None = None,
    expect: str | None = None,
    on_bytes: OnBytes = lambda _bytes: None,
) -> Merged:
    """Write ``base`` with ``parts`` merged into it as the new folder ``out``, whole or not at all.

    Config, generation config, tokenizer, chat templates and licences are carried over, nothing else; a README and
    ``efface_merge.json`` say what was merged into what. ``requantize``: `nf4` or `int8`, as bitsandbytes stores it.
    ``expect``: the digest that ``base`` must turn out to have. ``on_bytes(n)`` is called as bytes are written.
    Everything else is checked first. What a killed merge to the same ``out`` left is removed.

    Raises what `efface.adapters.compose.plan` raises; `ModelError` for a checkpoint with a missing or broken shard,
    one that could be two models, has weights that are not finite or is quantized on disk, and where something is
    quantized for a model type that is not in `efface.adapters.quantized_files.KNOWN_TYPES`; `BaseMismatch` for modules
    or shapes that it does not have, tied heads, and another base than expected; `CompositionError` for an unknown
    ``onto`` or ``requantize``, an ``out`` in the base's own folder or a disk that is too full. Nothing is left behind.
    """
    with merging(
        base, parts, out, onto=onto, requantize=requantize, expect=expect, on_bytes=on_bytes
    ) as made:
        pass
    return replace(made, path=out)


@contextmanager
def merging(
    base: Path,
    parts: Sequence[Part],
    out: Path,
    *,
    onto: str = "original",
    requantize: str | None = None,
    expect: str | None = None,
    served: Served | None = None,
    on_bytes: OnBytes = lambda _bytes: None,
) -> Generator[Merged]:
    """As `merge`, but what was merged is at ``Merged.path`` beside ``out`` while the block runs, to be audited there.

    It becomes ``out`` when the block ends, and is removed when that raises. ``served``: what release ``parts`` are of.
    """
    checked = _checked(base, parts, out, onto, requantize)
    stack = checked.job.stack
    with new_folder(out) as staging:
        _require_space(out, checked)
        read, wrote, listed, written = _write(checked.job, checked.shards, staging, on_bytes)
        carry(base, checked.files, staging, read, wrote)
        if read["config.json"] != checked.config_digest:
            raise ModelError(
                f"{base / 'config.json'}: expected what was read first, got another; merge again"
            )
        if requantize is not None:
            wrote["config.json"] = write_config(staging, checked.config, requantize)
            if INDEX in wrote:
                wrote[INDEX] = write_index(staging, listed)
        require_unchanged(stack)
        marks = _marks(checked.files, read)
        if expect not in (None, marks.digest):
            raise BaseMismatch(
                f"expected base {expect}, got {marks.digest} at {base}: give the base of the adapters"
            )
        describe(staging, marks, stack, onto, requantize, served)
        made = _marks(model_files(staging), wrote)
        yield Merged(staging, marks, made, len(checked.job.targets), written, requantize)


def check_merge(
    base: Path,
    parts: Sequence[Part],
    out: Path,
    *,
    onto: str = "original",
    requantize: str | None = None,
) -> None:
    """Raise what `merge` would raise before it writes anything, but for a lack of space."""
    _checked(base, parts, out, onto, requantize)


@dataclass(frozen=True, slots=True)
class _Checked:
    job: Job
    files: ModelFiles
    config: dict[str, Any]
    config_digest: str
    shards: list[Shard]


def _checked(base: Path, parts: Sequence[Part], out: Path, onto: str, requantize: str | None) -> _Checked:
    _check(onto, requantize)
    require_free(out)
    if base.resolve() in (parent := out.parent.resolve(), *parent.parents):
        raise CompositionError(
            f"expected a folder outside {base}, got {out}: the base is never modified; choose another place"
        )
    stack = plan(parts)
    files = model_files(base)
    config, config_digest = plain_config(base)
    kind = str(config.get("model_type") or "no model_type")
    if requantize is not None or onto != "original":
        quantized_files.require_known(kind)
    elif any(part.adapter.config.fan_in_fan_out for part in stack.parts):
        quantized_files.require_orientation(kind)
    shards = checkpoint_files.shards(base)
    _require_own_head(stack, base)
    job = Job(stack, _targets(stack, shards, kind), kind, onto, requantize)
    return _Checked(job, files, config, config_digest, shards)


def _check(onto: str, requantize: str | None) -> None:
    if onto not in ONTO:
        raise CompositionError(f"expected onto to be one of {', '.join(ONTO)}, got {onto!r}; correct it")
    if requantize not in (None, *quantized_files.FORMS):
        forms = ", ".join(quantized_files.FORMS)
        raise CompositionError(f"expected requantize to be one of {forms}, got {requantize!r}; correct it")


def _marks(files: ModelFiles, digests: Mapping[str, str]) -> Fingerprint:
    """Of the bytes that went through our hands; what lies beside them unused is hashed as it is."""
    return fingerprint_of(files, lambda file: digests.get(file.name) or digest_file(file))


def _require_own_head(stack: Stack, base: Path) -> None:
    """Raise `BaseMismatch` for an output head that is the embedding too, whether or not it is stored twice.

    Stored twice, `transformers` would load the changed one as it is, and vLLM the embedding in its place.
    """
    heads = [name for name in stack.modules if name.rpartition(".")[2] in _HEADS]
    if heads and ties_head(base):
        raise BaseMismatch(
            f"expected a head of its own, got tie_word_embeddings at {base}: {heads[0]} shares its weight with the "
            "embedding, which a merge would change too; leave that module out and train again"
        )


def _targets(stack: Stack, shards: Sequence[Shard], model_type: str) -> dict[str, str]:
    """Tensor in the checkpoint → module of the composition that changes it.

    A checkpoint saved without its head has names a level shorter: `h.0.…` for `transformer.h.0.…`.
    """
    stored = {tensor.name: tensor for shard in shards for tensor in shard.tensors}
    whole = {prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in stored)}
    targets: dict[str, str] = {}
    for name, module in stack.modules.items():
        prefix = next((one for one in _PREFIXES if name.startswith(one) and not whole), "")
        tensor = stored.get(f"{name.removeprefix(prefix)}.weight")
        if tensor is not None and tensor.name in targets:
            raise BaseMismatch(
                f"expected one module for {tensor.name}, got {targets[tensor.name]} and {name}; correct the adapter "
                "that calls it by another name"
            )
        if tensor is None:
            raise BaseMismatch(
                f"expected {name}.weight in the checkpoint, got none: it is another base; give that of the adapters"
            )
        size = (module.b.shape[0], module.a.shape[1])
        wanted = size[::-1] if quantized_files.is_turned(tensor.name, model_type) else size
        if tensor.shape != wanted or tensor.dtype not in DTYPES:
            raise BaseMismatch(
                f"expected {tensor.name} as a float matrix {wanted}, got {tensor.dtype} {tensor.shape}: "
                "the adapters are of another base"
            )
        targets[tensor.name] = name
    return targets


def _write(
    job: Job, shards: Sequence[Shard], folder: Path, on_bytes: OnBytes
) -> tuple[Digests, Digests, dict[str, str], int]:
    """Digests of the shards as they were read and as they were written, tensor → file, and the bytes written."""
    read, wrote, listed = Digests(), Digests(), dict[str, str]()
    written = 0

    def counted(count: int) -> None:
        nonlocal written
        written += count
        on_bytes(count)

    with changes(job) as change:
        for shard in shards:
            with Hashing() as running, source(shard, running) as opened:
                chunks = (
                    same_layout(opened, change)
                    if job.requantize is None
                    else new_layout(opened, change, job.requantize, listed)
                )
                wrote[shard.path.name] = write_atomic(folder / shard.path.name, _counted(chunks, counted))
                read[shard.path.name] = running.digest()
    return read, wrote, listed, written


def _counted(chunks: Iterator[bytes | memoryview], on_bytes: OnBytes) -> Iterator[bytes | memoryview]:
    for chunk in chunks:
        yield chunk
        on_bytes(len(chunk))


def _require_space(out: Path, checked: _Checked) -> None:
    form = checked.job.requantize
    if form is None:
        needed = sum(shard.path.stat().st_size for shard in checked.shards)
    else:
        tensors = [tensor for shard in checked.shards for tensor in shard.tensors]
        needed = sum(stored_bytes(tensor.name, tensor.shape, form) for tensor in tensors)
    if (free := shutil.disk_usage(out.parent).free) < needed:
        raise CompositionError(
            f"expected {needed:,} free bytes at {out.parent}, got {free:,}; free some, or name another disk"
        )
