"""The frame around an encoded gradient, and the flat vector inside it without its padding."""

import struct
import zlib
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.base.errors import WireError
from shared.base.flat import Layout

HEADER_BYTES = 16
_PREFIX = struct.Struct("<4sQ")
_CRC = struct.Struct("<I")


def seal_frame(codec: bytes, parameters: int, body: bytes) -> bytes:
    """Put the header before ``body``."""
    prefix = _PREFIX.pack(codec, parameters)
    return b"".join([prefix, _CRC.pack(zlib.crc32(body, zlib.crc32(prefix))), body])


def open_frame(codec: bytes, parameters: int, expected: int, payload: bytes) -> memoryview:
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


S = TypeVar("S", np.float32, np.int8)


def numbers(layout: Layout, vector: Tensor) -> NDArray[np.float32]:
    """Return ``vector`` (size,) as float32 on the host."""
    if vector.shape != (layout.size,):
        raise ValueError(f"vector of shape ({layout.size},) expected, got {tuple(vector.shape)}")
    host: NDArray[np.float32] = vector.detach().to("cpu", torch.float32).numpy()
    return host


def pack_vector(layout: Layout, flat: NDArray[S]) -> NDArray[S]:
    """Return the true elements of ``flat`` (size,) in order, (parameters,)."""
    return np.concatenate([flat[span.start : span.stop] for span in layout.tensors])


def unpack_vector(layout: Layout, values: NDArray[S]) -> NDArray[S]:
    """Lay ``values`` (parameters,) out with zero padding, (size,)."""
    flat = np.zeros(layout.size, dtype=values.dtype)
    taken = 0
    for span in layout.tensors:
        flat[span.start : span.stop] = values[taken : taken + span.size]
        taken += span.size
    return flat


def check_finite(flat: NDArray[np.float32]) -> Tensor:
    """Return ``flat`` (size,) as a tensor.

    Raises:
        WireError: a number is not finite.
    """
    refuse_infinite(flat, np.arange(0))
    return torch.from_numpy(flat)


def refuse_infinite(values: NDArray[np.float32], addresses: NDArray[np.int64]) -> None:
    """Raise if one of ``values`` (n,) is not finite; ``addresses`` (n,) or, if empty, 0 to n − 1.

    Raises:
        WireError: a number is not finite.
    """
    finite = np.isfinite(values)
    if not finite.all():
        bad = int(np.argmin(finite))
        address = addresses[bad] if len(addresses) else bad
        raise WireError(f"finite gradient expected, got {values[bad]} at address {address}")
