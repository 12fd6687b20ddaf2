"""Top-k sparsification: the largest numbers exactly, and error feedback for the others.

Aji & Heafield 2017, https://arxiv.org/abs/1704.05021. What is left out is
lost unless ``ErrorFeedback`` carries it over.
"""

from dataclasses import KW_ONLY, dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared.base.errors import ConfigError
from shared.base.flat import Layout
from shared.base.options import option
from shared.codecs import CODECS, Codec
from shared.codecs.addresses import Addresses, decode_addresses, encode_addresses, size_of_addresses
from shared.codecs.frame import (
    HEADER_BYTES,
    check_finite,
    numbers,
    open_frame,
    pack_vector,
    seal_frame,
    unpack_vector,
)

_NAME = b"topk"


@CODECS.register("topk")
@dataclass(frozen=True)
class TopK:
    """Body: the kept numbers as float32 in rising order of address, then their addresses.

    Kept numbers are exact, all others decode to zero. Among equals the lowest addresses win.
    """

    layout: Layout
    _: KW_ONLY
    fraction: float = option(
        0.01, "share of the numbers that is kept", key="topk-fraction", above=0, at_most=1
    )  # at least one number is

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction in (0, 1] expected, got {self.fraction}")

    @property
    def kept(self) -> int:
        """How many numbers travel."""
        return max(1, round(self.fraction * self.layout.parameters))

    @property
    def payload_bytes(self) -> int:
        """16 + 4 per kept number + its address: 1.1 to 1.2 bytes each at a fraction of 0.01."""
        return HEADER_BYTES + 4 * self.kept + size_of_addresses(self.kept, self.layout.parameters)

    def encode(self, vector: Tensor) -> bytes:
        """Encode ``vector`` (size,)."""
        values = pack_vector(self.layout, numbers(self.layout, vector))
        addresses = largest(values, self.kept)
        body = values[addresses].astype("<f4", copy=False).tobytes()
        body += encode_addresses(addresses, self.layout.parameters)
        return seal_frame(_NAME, self.layout.parameters, body)

    def decode(self, payload: bytes) -> Tensor:
        """Return the sparse vector (size,); WireError where the payload is not whole or finite."""
        parameters, cut = self.layout.parameters, 4 * self.kept
        body = open_frame(_NAME, parameters, self.payload_bytes, payload)
        values = np.zeros(parameters, dtype=np.float32)
        values[decode_addresses(body[cut:], self.kept, parameters)] = np.frombuffer(
            body[:cut], "<f4"
        )
        return check_finite(unpack_vector(self.layout, values))


def largest(values: NDArray[np.float32], count: int) -> Addresses:
    """Return the rising addresses of the ``count`` largest magnitudes, the lowest among equals."""
    magnitudes = values.view(np.uint32) & np.uint32(0x7FFFFFFF)  # ordered as the floats, NaN on top
    limit = np.partition(magnitudes, values.size - count)[values.size - count]
    above = np.flatnonzero(magnitudes > limit)
    level = np.flatnonzero(magnitudes == limit)[: count - above.size]
    return np.sort(np.concatenate([above, level]))


@dataclass
class ErrorFeedback:
    """One sender's memory of what its payloads left out; the receiver needs none.

    What a lossy codec loses is added to the next vector (error feedback): Seide et al. 2014, "1-bit
    SGD"; Karimireddy et al. 2019, https://arxiv.org/abs/1901.09847.
    """

    codec: Codec
    residual: Tensor | None = None  # (size,); what is still owed, nothing before the first payload

    def encode(self, vector: Tensor) -> bytes:
        """Encode ``vector`` (size,) plus the residual, and keep what that loses.

        Raises:
            WireError: a number is not finite; the residual is as it was.
        """
        owed = vector if self.residual is None else vector + self.residual
        payload = self.codec.encode(owed)
        self.residual = owed - self.codec.decode(payload).to(owed.device)
        return payload
