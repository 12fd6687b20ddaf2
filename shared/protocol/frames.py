"""The checksum around a message, and the checks that come before any of its fields is read."""

import struct
from zlib import crc32

from shared.base.errors import WireError

# frame: | magic u16 | … | crc32 u32 of all before |                               little-endian
LENGTH = struct.Struct("<I")


def close_frame(body: bytes) -> bytes:
    """A body with its checksum."""
    return body + LENGTH.pack(crc32(body))


def magic_of(data: bytes) -> int:
    """The magic number of a frame, which says what it is; nothing else is checked."""
    return int.from_bytes(data[:2], "little")


def open_frame(data: bytes, header: struct.Struct, magic: int, exact: bool = False) -> bytes:
    """Return the bytes before the checksum, once length, magic number and checksum are right.

    Raises:
        WireError: one of them is wrong.
    """
    size = header.size + LENGTH.size
    if len(data) < size or (exact and len(data) != size):
        raise WireError(f"{'' if exact else 'at least '}{size} bytes expected, got {len(data)}")
    if (got := magic_of(data)) != magic:
        raise WireError(f"a frame {magic:#x} expected, got {got:#x}")
    body = data[: -LENGTH.size]
    if LENGTH.unpack(data[-LENGTH.size :])[0] != crc32(body):
        raise WireError("the frame's checksum does not fit its bytes")
    return body
