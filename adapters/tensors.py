"""Tensors as canonical bytes: the same values give the same file and digest in every process.

The canonical form is a written contract, so that a digest outlives a library's release: the safetensors
format with tensors ordered by dtype (F32, BF16, F16), then by name; one metadata key, ``format: pt`` (two or
more keys come out in random order from the safetensors library); a compact JSON header padded with spaces to
eight bytes. A test holds it equal to what ``safetensors.torch.save`` writes today. Tensors are streamed one
at a time: memory is that of the largest tensor, not that of the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import torch
from torch import Tensor

from .errors import InvalidAdapter

DTYPES: Mapping[str, torch.dtype] = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The storage types of adapters, in the order in which the canonical form stores them."""

_ORDER = {name: position for position, name in enumerate(DTYPES)}
_READ_SIZE = 4 << 20
_WORTH_A_THREAD = 1 << 16
"""Bytes: hashing fewer takes less than handing them over."""
_HELD = 16 << 20

Chunk = bytes | memoryview
"""Bytes of a file, in pieces."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without its values: ``dtype`` is its safetensors name (for adapters, a key of `DTYPES`)."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return DTYPES[self.dtype].itemsize * math.prod(self.shape)


def spec_of(tensor: Tensor) -> TensorSpec:
    """The spec of ``tensor``; raises `InvalidAdapter` when its dtype is not in `DTYPES`."""
    names = [name for name, dtype in DTYPES.items() if dtype == tensor.dtype]
    if not names:
        raise InvalidAdapter(
            f"expected a float32, bfloat16 or float16 tensor, got {tensor.dtype}; cast it first"
        )
    return TensorSpec(names[0], tuple(tensor.shape))


def safetensors_chunks(
    specs: Mapping[str, TensorSpec], read: Callable[[str], Tensor], *, own: bool = False
) -> Iterator[Chunk]:
    """The canonical file for ``specs``, in pieces: the header, then each tensor as ``read`` gives it.

    ``own``: what ``read`` gives is memory that nobody else writes to, and needs no copy. Of a mapped file that is not
    so: what is written and what is hashed would be two looks at it. Raises `InvalidAdapter` when ``read`` returns a
    tensor of another shape or dtype, or values not finite.
    """
    names = sorted(specs, key=lambda name: (_ORDER[specs[name].dtype], name))
    yield _header({name: specs[name] for name in names})
    for name in names:
        tensor = read(name)
        require_spec(name, tensor, specs[name])
        require_finite(name, tensor)
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        yield raw.data if own else raw.tobytes()


def canonical_digest(file: Path, specs: Mapping[str, TensorSpec]) -> str | None:
    """The digest of ``file`` if it is the canonical form of ``specs`` with finite values; None when it is not.

    What `safetensors_chunks` would hash, without a tensor at a time. None for anything out of the ordinary: the slow
    way then says what it is.
    """
    names = sorted(specs, key=lambda name: (_ORDER[specs[name].dtype], name))
    header = _header({name: specs[name] for name in names})
    sizes = dict.fromkeys(DTYPES, 0)
    for spec in specs.values():
        sizes[spec.dtype] += spec.nbytes
    if file.stat().st_size != len(header) + sum(sizes.values()):
        return None
    running = hashlib.sha256(header)
    with file.open("rb", buffering=0) as stream:
        if stream.read(len(header)) != header:
            return None
        for dtype, left in sizes.items():
            if not _finite_values(stream, left, DTYPES[dtype], running.update):
                return None
        return None if stream.read(1) else f"sha256:{running.hexdigest()}"


def _finite_values(
    stream: BinaryIO, size: int, dtype: torch.dtype, update: Callable[[memoryview], object]
) -> bool:
    """Pass ``size`` bytes to ``update``; False when they end early or are not all finite. One buffer, reused."""
    buffer = memoryview(bytearray(min(size, _READ_SIZE)))
    while size:
        piece = buffer[: min(size, _READ_SIZE)]
        if not fill(stream, piece) or not _finite(torch.frombuffer(piece, dtype=dtype)):
            return False
        update(piece)
        size -= len(piece)
    return True


def fill(stream: BinaryIO, piece: memoryview) -> bool:
    """Read until ``piece`` is full; False when ``stream`` ends before."""
    done = 0
    while done < len(piece):
        count = stream.readinto(piece[done:])  # type: ignore[attr-defined]
        if not count:
            return False
        done += count
    return True


def safetensors_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """``tensors`` as one canonical safetensors file in memory; raises `InvalidAdapter` as above."""
    specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
    return b"".join(safetensors_chunks(specs, lambda name: tensors[name]))


def require_spec(name: str, tensor: Tensor, spec: TensorSpec) -> None:
    """Raise `InvalidAdapter` when ``tensor`` is not of ``spec``'s dtype and shape."""
    if tensor.dtype == DTYPES[spec.dtype] and tensor.shape == spec.shape:
        return
    came = spec_of(tensor)
    raise InvalidAdapter(
        f"{name}: expected {spec.dtype} {list(spec.shape)}, got {came.dtype} {list(came.shape)}; "
        "if the file was rewritten while it was read, do it again"
    )


def require_finite(name: str, tensor: Tensor) -> None:
    """Raise `InvalidAdapter` when ``tensor`` holds NaN or infinity: one can poison a server for good."""
    if not _finite(tensor):
        bad = int((~torch.isfinite(tensor)).sum())
        raise InvalidAdapter(
            f"{name}: expected finite values, got {bad} NaN or infinite of {tensor.numel()}; "
            "train it again or lower its weight"
        )


def _finite(values: Tensor) -> bool:
    """Without a copy: NaN shows in both ends, an infinity is one of them.

    By NumPy where it knows the type: torch would use all cores for a moment, and leave them spinning beside a thread
    that hashes.
    """
    if not values.numel():
        return True
    if values.dtype == torch.float32 and values.device.type == "cpu":
        array = values.detach().numpy()
        return math.isfinite(array.min()) and math.isfinite(array.max())
    return all(bool(end.isfinite()) for end in torch.aminmax(values))


def digest_bytes(data: bytes) -> str:
    """``sha256:<hex>`` of ``data``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_chunks(chunks: Iterable[Chunk], write: Callable[[Chunk], object] | None = None) -> str:
    """``sha256:<hex>`` of the concatenation of ``chunks``, each given to ``write`` too."""
    with Hashing(write) as running:
        for chunk in chunks:
            running.update(chunk)
        return running.digest()


class Hashing:
    """SHA-256 of chunks in a thread of its own, so that making the next ones need not wait for it.

    ``write``: called with each chunk, in their order and in that thread; what it raises, `update` or `digest` raises.
    Chunks must not change once they are given. Held are 16 MiB of them, or the last two: on a machine whose cores are
    taken, every wait for the other thread costs a turn of the scheduler. Close it, or use it in a ``with``.
    """

    def __init__(self, write: Callable[[Chunk], object] | None = None) -> None:
        self._state = hashlib.sha256()
        self._write = write
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def update(self, chunk: Chunk) -> None:
        """Add ``chunk``: at once when it is small and nothing waits, else when those before it are done."""
        if len(chunk) < _WORTH_A_THREAD:
            self._wait(0)
            self._take(chunk)
            return
        self._wait(_HELD)
        self._waiting.append((self._thread.submit(self._take, chunk), len(chunk)))
        self._held += len(chunk)

    def digest(self) -> str:
        """``sha256:<hex>`` of everything given so far."""
        self._wait(0)
        return f"sha256:{self._state.hexdigest()}"

    def _take(self, chunk: Chunk) -> None:
        self._state.update(chunk)
        if self._write is not None:
            self._write(chunk)

    def _wait(self, most: int) -> None:
        """Until at most ``most`` bytes are held."""
        while self._waiting and self._held > most:
            done, size = self._waiting.popleft()
            done.result()
            self._held -= size


def digest_file(path: Path) -> str:
    """``sha256:<hex>`` of the file at ``path``; raises `OSError` when it cannot be read."""
    with path.open("rb") as file:
        return digest_chunks(iter(lambda: file.read(_READ_SIZE), b""))


def write_atomic(path: Path, chunks: Iterable[Chunk]) -> str:
    """Write ``chunks`` to ``path`` whole or not at all (temp, fsync, rename), and return the digest.

    A file already at ``path`` is replaced. If ``chunks`` raises, ``path`` is as it was before.
    """
    temp = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temp.open("xb") as file:
            digest = digest_chunks(chunks, file.write)
            file.flush()
            os.fsync(file.fileno())
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)
    sync_folder(path.parent)
    return digest


def sync_folder(folder: Path) -> None:
    """Fsync a directory, so that a rename inside it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _header(specs: Mapping[str, TensorSpec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, spec in specs.items():
        end = start + spec.nbytes
        entries[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text + b" " * (-len(text) % 8)
    return len(padded).to_bytes(8, "little") + padded
