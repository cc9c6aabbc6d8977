"""The safetensors format without torch or numpy: what its header says, and whether its values are finite.

8 bytes of header length (little endian), a JSON header `{name: {dtype, shape, data_offsets}}`, the values. Read
at least as strictly as the reference implementation does: what passes here, it loads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from .canon import JSON, parse
from .errors import RegistryError
from .plain_files import Source

HEADER_LIMIT = 100_000_000
"""The limit of the reference implementation."""

_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "I8", "U8", "BOOL"), 8),
}
_EXPONENT = {"F64": (0x7F, 0xF0), "F32": (0x7F, 0x80), "BF16": (0x7F, 0x80), "F16": (0x7C, 0x00)}
"""The exponent's bits in the two highest bytes of a little-endian float: all of them on is NaN or infinity."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor without its values, which are the bytes `start` to `end` after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def split(data: bytes, source: Source, limit: int = HEADER_LIMIT) -> tuple[dict[str, Tensor], int]:
    """The tensors of a whole file by name, and where the values begin. Raises InvalidInput."""
    begin = 8 + header_length(data[:8], len(data), source, limit)
    tensors = parse_header(data[8:begin], source)
    check_layout(tensors.values(), len(data) - begin, source)
    return tensors, begin


def header_length(first: bytes, size: int, source: Source, limit: int = HEADER_LIMIT) -> int:
    """The length of the header of a file of `size` bytes that begins with `first`. Raises InvalidInput."""
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or not 2 <= length <= min(size - 8, limit):
        raise source.bad("a safetensors header within the file", "another length")
    return length


def parse_header(text: bytes, source: Source) -> dict[str, Tensor]:
    """The tensors that a header names, each with as many bytes as it needs. Raises InvalidInput."""
    header = _object(text, source)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, Mapping) or not all(isinstance(value, str) for value in metadata.values()):
        raise source.bad("metadata of text only", "other JSON")
    return {name: _tensor(entry, source) for name, entry in header.items()}


def check_layout(tensors: Iterable[Tensor], size: int, source: Source) -> None:
    """Tensors follow each other without overlap or hole: no byte of the file is left unexplained."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != end:
            raise source.bad("tensors one after the other", "an overlap or a hole")
        end = tensor.end
    if end != size:
        raise source.bad(f"{end} bytes of tensors", f"{size}")


def is_finite(data: bytes, begin: int, tensor: Tensor) -> bool:
    """Whether every value of a float `tensor` is finite; `begin` is where the values start in `data`.

    Bits, not arithmetic: the two highest bytes of each value become flags, and two long integers do the rest
    (30 MB take some 50 ms).
    """
    width = _BITS[tensor.dtype] // 8
    masks = zip(_EXPONENT[tensor.dtype], (width - 1, width - 2), strict=True)
    top, below = (
        int.from_bytes(data[begin + tensor.start + at : begin + tensor.end : width].translate(_all_on(mask)))
        for mask, at in masks
    )
    return not top & below


def _all_on(mask: int) -> bytes:
    """A translation table: 1 for a byte that has every bit of `mask`, 0 for the others."""
    return bytes((byte & mask) == mask for byte in range(256))


def _object(text: bytes, source: Source) -> dict[str, JSON]:
    """UTF-8 JSON that starts with its brace; `json` alone would guess at UTF-16 and skip leading blanks."""
    try:
        value = parse(text.decode("utf-8")) if text[:1] == b"{" else None
    except (UnicodeDecodeError, RegistryError) as error:
        raise source.bad("a safetensors header in JSON", "no JSON") from error
    if not isinstance(value, dict):
        raise source.bad("a safetensors header in JSON", "other JSON")
    try:
        "".join(_texts(value)).encode("utf-8")
    except UnicodeEncodeError as error:
        raise source.bad("a safetensors header in Unicode", "half a character") from error
    return value


def _texts(header: Mapping[str, JSON]) -> Iterable[str]:
    yield from header
    metadata = header.get("__metadata__")
    if isinstance(metadata, Mapping):
        yield from metadata
        yield from (value for value in metadata.values() if isinstance(value, str))


def _tensor(entry: JSON, source: Source) -> Tensor:
    fields = cast("dict[str, Any]", entry if isinstance(entry, dict) else {})
    dtype, shape, offsets = (
        fields.get("dtype"),
        _counts(fields.get("shape")),
        _counts(fields.get("data_offsets")),
    )
    if (
        len(fields) != 3
        or not isinstance(dtype, str)
        or shape is None
        or offsets is None
        or len(offsets) != 2
    ):
        raise source.bad("tensors with dtype, shape and data_offsets", "another entry")
    start, end = offsets
    bits = _BITS.get(dtype)
    if end < start or (bits is not None and (end - start) * 8 != math.prod(shape) * bits):
        raise source.bad("as many bytes as a tensor's shape needs", "another number")
    return Tensor(dtype, shape, start, end)


def _counts(value: Any) -> tuple[int, ...] | None:
    """The whole numbers from 0 in a list of at most 8; None for anything else."""
    if not isinstance(value, list) or len(cast("list[Any]", value)) > 8:
        return None
    numbers = cast("list[Any]", value)
    return tuple(numbers) if all(type(number) is int and number >= 0 for number in numbers) else None
