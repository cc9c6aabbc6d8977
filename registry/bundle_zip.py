"""A zip archive with exactly one spelling: stored members in order of their names, one date, nothing between them.

`unpack` reads only what `pack` writes, byte for byte, so an archive has no byte that could change unnoticed, and none
that could hide something. Stored, not deflated: two versions of zlib write two files, and nothing can explode. Any
zip tool opens it.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping

from .errors import GateFailed, InvalidInput

LARGEST_ARCHIVE = 256 * 1024 * 1024
MOST_MEMBERS = 65_534
"""More need zip64."""
_NAME = re.compile(r"[a-z]{1,32}(?:/[0-9a-f]{64})?\.(?:json|html)")
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_VERSION, _UNIX, _STORED, _DATE = 20, 3 << 8, 0, 0x21  # the first day that zip has: 1980-01-01
_MODE = 0o100644 << 16
_FIX = "Pass a bundle as `efface bundle export` wrote it."


def pack(members: Mapping[str, bytes]) -> bytes:
    """The archive of these members. Raises InvalidInput for names it does not take, or too much."""
    if len(members) > MOST_MEMBERS or sum(map(len, members.values())) > LARGEST_ARCHIVE // 2:
        raise InvalidInput(
            f"at most {MOST_MEMBERS} members and {LARGEST_ARCHIVE // 2} bytes", "more", "Export less at once."
        )
    parts: list[bytes] = []
    central: list[bytes] = []
    offset = 0
    for name in sorted(members):
        local, entry = _entry(name, members[name], offset)
        parts += (local, members[name])
        central.append(entry)
        offset += len(local) + len(members[name])
    directory = b"".join(central)
    end = _END.pack(b"PK\5\6", 0, 0, len(central), len(central), len(directory), offset, 0)
    return b"".join((*parts, directory, end))


def unpack(data: bytes) -> dict[str, bytes]:
    """The members of an archive. Raises InvalidInput when it is none, GateFailed when `pack` would write another."""
    if not data.startswith(b"PK\3\4") or len(data) > LARGEST_ARCHIVE:
        raise InvalidInput(f"a bundle of at most {LARGEST_ARCHIVE} bytes", "another file", _FIX)
    members: dict[str, bytes] = {}
    offset = 0
    while data[offset : offset + 4] == b"PK\3\4":
        name, content = _member(data, offset)
        if name in members:
            raise GateFailed("each member once", "one twice", _FIX)
        members[name] = content
        offset += _LOCAL.size + len(name) + len(content)
    if pack(members) != data:
        raise GateFailed("a bundle byte for byte as it was written", "a changed or damaged one", _FIX)
    return members


def _entry(name: str, data: bytes, offset: int) -> tuple[bytes, bytes]:
    if not _NAME.fullmatch(name):
        raise InvalidInput("names of members of a bundle", "another name", _FIX)
    raw, size = name.encode(), len(data)
    shared = (_VERSION, 0, _STORED, 0, _DATE, zlib.crc32(data), size, size, len(raw), 0)
    local = _LOCAL.pack(b"PK\3\4", *shared) + raw
    return local, _CENTRAL.pack(b"PK\1\2", _UNIX | _VERSION, *shared, 0, 0, 0, _MODE, offset) + raw


def _member(data: bytes, offset: int) -> tuple[str, bytes]:
    """The next member; what its header says is checked by writing it again."""
    if len(data) < offset + _LOCAL.size or len(data) > LARGEST_ARCHIVE:
        raise GateFailed("a whole bundle", "one that was cut", _FIX)
    fields = _LOCAL.unpack_from(data, offset)
    size, length = fields[7], fields[9]
    start = offset + _LOCAL.size
    raw = data[start : start + length]
    name = raw.decode("latin-1")
    if length > 128 or not _NAME.fullmatch(name) or start + length + size > len(data):
        raise GateFailed("the members of a bundle", "another name or size", _FIX)
    return name, data[start + length : start + length + size]
