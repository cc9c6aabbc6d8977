"""The folders that a server loads: one per version, never rewritten, checked before any server sees them.

``<root>/<channel>/<name>/`` has a PEFT config and weights. A folder is built beside and renamed into place: whole or
absent. Deleting one that a server has registered kills vLLM, which is why only the controller does it. No torch here.
"""

from __future__ import annotations

import json
import secrets
import shutil
import struct
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..registry import RegistryError, digest_bytes, durable, peft_folder
from .errors import ServingError
from .names import is_safe, parse_name
from .slots import VLLM_RANKS, least_slot

Shapes = Mapping[str, tuple[int, int]]
"""(out, in) of each matrix of the base by module name (`efface.registry.base_shapes`)."""


class BadAdapter(ServingError):
    """A folder that no server may load: the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server takes. ``max_rank``: its ``--max-lora-rank``; ``shapes``: of its base, where known."""

    max_rank: int = VLLM_RANKS[-1]
    shapes: Shapes | None = None


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of one channel below ``root``."""

    root: Path
    channel: str

    def path(self, name: str) -> Path:
        """Where the folder of ``name`` is. Raises `BadAdapter` for a name that is not one of this channel."""
        found = parse_name(name)
        if found is None or found.channel != self.channel or not is_safe(name):
            raise BadAdapter(f"expected a name such as {self.channel}@7, got another; nothing was loaded")
        return self.root / self.channel / name

    def names(self) -> frozenset[str]:
        """The whole folders that there are."""
        folder = self.root / self.channel
        if not folder.is_dir():
            return frozenset()
        found = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()}
        return frozenset(name for name in found if (one := parse_name(name)) and one.channel == self.channel)

    @contextmanager
    def new(self, name: str) -> Generator[Path]:
        """An empty folder that becomes that of ``name`` at the end, or is removed on any error."""
        place = self.path(name)
        durable.make_folder(place.parent)
        staging = place.parent / f"{durable.TEMPORARY}{secrets.token_hex(8)}"
        staging.mkdir()
        try:
            yield staging
            durable.sync_folder(staging)
            staging.rename(place)
            durable.sync_folder(place.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def delete(self, name: str) -> None:
        """Remove the folder of ``name``: renamed away first, so that no half of it is ever found."""
        place = self.path(name)
        trash = place.parent / f"{durable.TEMPORARY}{secrets.token_hex(8)}"
        if place.is_dir():
            place.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what crashes left; only one process at a time may own the folders of a channel."""
        for entry in (self.root / self.channel).glob(f"{durable.TEMPORARY}*"):
            shutil.rmtree(entry, ignore_errors=True)


def check(folder: Path, *, files: Mapping[str, str] | None, base: str, limits: Limits) -> int:
    """The rank of the adapter in ``folder``, after everything that a server would not check.

    A plain LoRA, ranks and targets as its config says, finite, within ``limits``, made for ``base`` (a digest; adapters
    made elsewhere name theirs otherwise, and are held to the shapes alone), and exactly ``files`` where these are
    known. Raises `BadAdapter`.
    """
    try:
        data = peft_folder.read(folder)
        pairs = peft_folder.check(data)
        if limits.shapes is not None:
            peft_folder.check_against(data, limits.shapes)
    except RegistryError as error:
        raise BadAdapter(f"an adapter that must not be loaded: {error}") from error
    _require_files(data, files)
    _require_base(data[peft_folder.CONFIG], base)
    rank = max(pair.rank for pair in pairs.values())
    if least_slot(rank, limits.max_rank) is None:
        most = min(limits.max_rank, VLLM_RANKS[-1])
        raise BadAdapter(
            f"expected a rank of at most {most}, which the server takes, got {rank}; release it smaller (efface "
            f"release render {folder.parent.name} svd:{most}), or start the server with a larger --max-lora-rank "
            f"(vLLM: {_LISTED})"
        )
    return rank


def zero(like: Mapping[str, bytes], base: str) -> dict[str, bytes]:
    """The two files of a rank-1 adapter that changes nothing, on one module of the adapter with the files ``like``.

    How a release of the bare base is served: under a name of its own, so that a base is never asked for.
    """
    pairs = peft_folder.check(like)
    module = min(pairs)
    shapes = {"A": (1, pairs[module].in_features), "B": (pairs[module].out_features, 1)}
    config = {
        "base_model_name_or_path": base,
        "bias": "none",
        "lora_alpha": 1,
        "peft_type": "LORA",
        "r": 1,
        "target_modules": [module],
        "task_type": "CAUSAL_LM",
    }
    tensors = {f"base_model.model.{module}.lora_{side}.weight": shape for side, shape in shapes.items()}
    return {peft_folder.CONFIG: json.dumps(config).encode(), peft_folder.WEIGHTS: _zeros(tensors)}


def fill(folder: Path, files: Mapping[str, bytes] | Mapping[str, Path]) -> None:
    """Write ``files`` (bytes, or files to copy) into the empty ``folder``, each durable and read-only."""
    for name, source in files.items():
        durable.write_file(folder / name, source if isinstance(source, bytes) else source.read_bytes(), 0o444)


_LISTED = ", ".join(map(str, VLLM_RANKS))


def _zeros(tensors: Mapping[str, tuple[int, int]]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(tensors.items()):
        size = 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(end)


def _require_files(data: Mapping[str, bytes], files: Mapping[str, str] | None) -> None:
    if files is not None and {name: digest_bytes(one) for name, one in data.items()} != dict(files):
        raise BadAdapter(
            "expected the files that the ledger names, got others; remove the folder, it is made again"
        )


def _require_base(config: bytes, base: str) -> None:
    made_for = json.loads(config).get("base_model_name_or_path")
    if isinstance(made_for, str) and made_for.startswith("sha256:") and made_for != base:
        raise BadAdapter(
            f"expected an adapter for the base {base}, got one for another; release the right one"
        )
