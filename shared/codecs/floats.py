"""Codecs of plain floating point: ``float32`` is exact, ``bfloat16`` keeps eight bits of each."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.base.flat import Layout
from shared.codecs import CODECS
from shared.codecs.frame import (
    HEADER_BYTES,
    check_finite,
    numbers,
    open_frame,
    pack_vector,
    seal_frame,
    unpack_vector,
)

_FLOAT32, _BFLOAT16 = b"f32\0", b"bf16"  # names on the wire


@CODECS.register("float32")
@dataclass(frozen=True)
class Float32:
    """Body: one float32 per parameter. Decoding gives the encoded vector bit for bit."""

    layout: Layout

    @property
    def payload_bytes(self) -> int:
        """16 + 4 per parameter."""
        return HEADER_BYTES + 4 * self.layout.parameters

    def encode(self, vector: Tensor) -> bytes:
        """Encode ``vector`` (size,)."""
        values = pack_vector(self.layout, numbers(self.layout, vector))
        body = values.astype("<f4", copy=False).tobytes()
        return seal_frame(_FLOAT32, self.layout.parameters, body)

    def decode(self, payload: bytes) -> Tensor:
        """Return the vector (size,); WireError where the payload is not whole or finite."""
        body = open_frame(_FLOAT32, self.layout.parameters, self.payload_bytes, payload)
        values = np.frombuffer(body, "<f4").astype(np.float32, copy=False)
        return check_finite(unpack_vector(self.layout, values))


@CODECS.register("bfloat16")
@dataclass(frozen=True)
class BFloat16:
    """Body: one bfloat16 per parameter, rounded to nearest, ties to even.

    |error| <= 2^-8 |x| where |x| >= 2^-126, and <= 2^-134 below. A magnitude of (2 - 2^-8) 2^127 or
    more rounds to infinity, which ``decode`` refuses.
    """

    layout: Layout

    @property
    def payload_bytes(self) -> int:
        """16 + 2 per parameter."""
        return HEADER_BYTES + 2 * self.layout.parameters

    def encode(self, vector: Tensor) -> bytes:
        """Encode ``vector`` (size,)."""
        values = torch.from_numpy(pack_vector(self.layout, numbers(self.layout, vector)))
        halves = values.to(torch.bfloat16).view(torch.uint16).numpy()
        body = halves.astype("<u2", copy=False).tobytes()
        return seal_frame(_BFLOAT16, self.layout.parameters, body)

    def decode(self, payload: bytes) -> Tensor:
        """Return the rounded vector (size,); WireError where the payload is not whole or finite."""
        body = open_frame(_BFLOAT16, self.layout.parameters, self.payload_bytes, payload)
        words = np.frombuffer(body, "<u2").astype(np.uint32) << 16
        return check_finite(unpack_vector(self.layout, words.view(np.float32)))
