"""Every payload opens with a header that tells its codec, its length and whether it is whole.

    offset  bytes
    0       4      name of the codec, ASCII, padded with zeros
    4       8      number of parameters, without padding (uint64)
    12      4      crc32 of bytes 0 .. 11 and of the body (uint32)
    16      ...    body

All integers and floats, the body's too, are little-endian.
"""

import struct
import zlib

from shared.errors import WireError

HEADER_BYTES = 16
_PREFIX = struct.Struct("<4sQ")
_CRC = struct.Struct("<I")


def sealed(codec: bytes, parameters: int, body: bytes) -> bytes:
    """Put the header before ``body``."""
    prefix = _PREFIX.pack(codec, parameters)
    return b"".join([prefix, _CRC.pack(zlib.crc32(body, zlib.crc32(prefix))), body])


def opened(codec: bytes, parameters: int, expected: int, payload: bytes) -> memoryview:
    """Check the header of ``payload``, of ``expected`` bytes in all, and return its body.

    Raises:
        WireError: anything is not as expected; says what.
    """
    if len(payload) < HEADER_BYTES:
        raise WireError(f"truncated payload: a header of {HEADER_BYTES} bytes, got {len(payload)}")
    name, count = _PREFIX.unpack_from(payload)
    if name != codec:
        raise WireError(f"payload of codec {codec!r} expected, got {name!r}")
    if count != parameters:
        raise WireError(f"gradient of {parameters} parameters expected, got {count}")
    if len(payload) != expected:
        fault = "truncated" if len(payload) < expected else "oversized"
        raise WireError(f"{fault} payload: {expected} bytes expected, got {len(payload)}")
    body = memoryview(payload)[HEADER_BYTES:]
    crc = zlib.crc32(body, zlib.crc32(payload[: _PREFIX.size]))
    (claimed,) = _CRC.unpack_from(payload, _PREFIX.size)
    if crc != claimed:
        raise WireError(f"corrupt payload: crc32 {claimed:08x} claimed, {crc:08x} found")
    return body
