"""The upper half of every float32, rounded: two bytes each, eight significant bits."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.codecs import CODECS
from shared.codecs.frame import HEADER_BYTES, opened, sealed
from shared.codecs.packing import checked, numbers, packed, unpacked
from shared.flat import Layout

_NAME = b"bf16"


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
        values = torch.from_numpy(packed(self.layout, numbers(self.layout, vector)))
        halves = values.to(torch.bfloat16).view(torch.uint16).numpy()
        body = halves.astype("<u2", copy=False).tobytes()
        return sealed(_NAME, self.layout.parameters, body)

    def decode(self, payload: bytes) -> Tensor:
        """Return the rounded vector (size,); WireError where the payload is not whole or finite."""
        body = opened(_NAME, self.layout.parameters, self.payload_bytes, payload)
        words = np.frombuffer(body, "<u2").astype(np.uint32) << 16
        return checked(unpacked(self.layout, words.view(np.float32)))
