"""Every number as it is: exact, four bytes each."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from shared.codecs import CODECS
from shared.codecs.frame import HEADER_BYTES, opened, sealed
from shared.codecs.packing import checked, numbers, packed, unpacked
from shared.flat import Layout

_NAME = b"f32\0"


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
        values = packed(self.layout, numbers(self.layout, vector))
        body = values.astype("<f4", copy=False).tobytes()
        return sealed(_NAME, self.layout.parameters, body)

    def decode(self, payload: bytes) -> Tensor:
        """Return the vector (size,); WireError where the payload is not whole or finite."""
        body = opened(_NAME, self.layout.parameters, self.payload_bytes, payload)
        values = np.frombuffer(body, "<f4").astype(np.float32, copy=False)
        return checked(unpacked(self.layout, values))
