"""A rising list of addresses in about two bits each more than their mean gap needs (Elias-Fano).

Elias 1974 (J. ACM 21, 246-260); Fano 1971 (MIT memo 61). With l = floor(log2(limit / count)), the
l lower bits of each address stand as they are; the rest, a rising list of small numbers, is a
bitmap in which number i of value h sets bit h + i. So the length follows from count and limit.

    ceil(count * l / 8) bytes                        lower bits, address by address
    ceil((count + (limit - 1 >> l)) / 8) bytes       bitmap

Bits fill each byte from its lowest; spare bits are zero.
"""

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import WireError

Addresses = NDArray[np.int64]


def size_of_addresses(count: int, limit: int) -> int:
    """Length of ``coded`` for ``count`` addresses, at least one, below ``limit``."""
    return sum(_lengths(count, limit))


def encode_addresses(addresses: Addresses, limit: int) -> bytes:
    """Encode ``addresses`` (count,), strictly rising and below ``limit``."""
    count = addresses.size
    width = _width(count, limit)
    lower = np.empty((count, width), dtype=np.uint8)
    for bit in range(width):
        lower[:, bit] = addresses >> bit & 1
    marks = np.zeros(8 * _lengths(count, limit)[1], dtype=np.uint8)
    marks[(addresses >> width) + np.arange(count)] = 1
    return b"".join(np.packbits(bits, bitorder="little").tobytes() for bits in (lower, marks))


def decode_addresses(body: memoryview, count: int, limit: int) -> Addresses:
    """Return the ``count`` addresses below ``limit`` that ``body`` holds.

    Raises:
        WireError: they are too many or too few, do not rise, or reach ``limit``.
    """
    width = _width(count, limit)
    cut, _ = _lengths(count, limit)
    marks = np.flatnonzero(_bits(body[cut:]))
    if marks.size != count:
        raise WireError(f"{count} addresses expected, got {marks.size}")
    addresses = (marks - np.arange(count)) << width
    lower = _bits(body[:cut])[: count * width].reshape(count, width)
    for bit in range(width):
        addresses |= lower[:, bit].astype(np.int64) << bit
    if addresses[-1] >= limit or not (np.diff(addresses) > 0).all():
        raise WireError(f"rising addresses below {limit} expected, got others")
    return addresses


def _width(count: int, limit: int) -> int:
    return (limit // count).bit_length() - 1


def _lengths(count: int, limit: int) -> tuple[int, int]:
    width = _width(count, limit)
    return -(-count * width // 8), -(-(count + (limit - 1 >> width)) // 8)


def _bits(body: memoryview) -> NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(body, np.uint8), bitorder="little")
