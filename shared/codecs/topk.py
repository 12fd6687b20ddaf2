"""Top-k sparsification: the largest numbers exactly, and error feedback for the others.

Aji & Heafield 2017, https://arxiv.org/abs/1704.05021. What is left out is
lost unless ``ErrorFeedback`` carries it over.
"""

from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.base.errors import ConfigError
from shared.base.flat import Layout
from shared.base.options import option
from shared.codecs import CODECS, Codec
from shared.codecs.addresses import Addresses, decode_addresses, encode_addresses, size_of_addresses
from shared.codecs.frame import (
    HEADER_BYTES,
    numbers,
    open_frame,
    pack_vector,
    refuse_infinite,
    seal_frame,
)

_NAME = b"topk"
PIECE = 1 << 28  # elements that torch lists the true ones of at once


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
        chosen = self._choose_on_card(vector) if vector.is_cuda else None
        addresses, values = chosen or self._choose(vector)
        body = values.astype("<f4", copy=False).tobytes()
        body += encode_addresses(addresses, self.layout.parameters)
        return seal_frame(_NAME, self.layout.parameters, body)

    def _choose(self, vector: Tensor) -> tuple[Addresses, NDArray[np.float32]]:
        """Addresses (kept,) among the parameters, and the numbers there."""
        values = pack_vector(self.layout, numbers(self.layout, vector))
        addresses = largest(values, self.kept)
        return addresses, values[addresses]

    def _choose_on_card(self, vector: Tensor) -> tuple[Addresses, NDArray[np.float32]] | None:
        """The same without a copy of all numbers on the host; None if zeros would be among them."""
        at = largest_of(vector, self.kept)
        if at is None:
            return None
        addresses, values = at.cpu().numpy(), vector[at].to("cpu", torch.float32).numpy()
        return addresses - self._gaps(addresses, self._starts), values

    def _gaps(self, addresses: Addresses, starts: Addresses) -> Addresses:
        """The padding before each address; ``starts`` are those of the tensors, in its space."""
        gaps: Addresses = (self._starts - self._packed_starts)[
            np.searchsorted(starts, addresses, "right") - 1
        ]
        return gaps

    @cached_property
    def _starts(self) -> Addresses:
        """The flat address of each tensor that has elements."""
        return np.array([span.start for span in self.layout.tensors if span.size], np.int64)

    @cached_property
    def _packed_starts(self) -> Addresses:
        """How many parameters are before each tensor that has elements."""
        sizes = [span.size for span in self.layout.tensors if span.size]
        return np.cumsum([0, *sizes[:-1]], dtype=np.int64)

    def decode(self, payload: bytes) -> Tensor:
        """Return the sparse vector (size,); WireError where the payload is not whole or finite."""
        parameters, cut = self.layout.parameters, 4 * self.kept
        body = open_frame(_NAME, parameters, self.payload_bytes, payload)
        addresses = decode_addresses(body[cut:], self.kept, parameters).astype(np.int64)
        flat = np.zeros(self.layout.size, dtype=np.float32)  # memory that is not touched is free
        values = np.frombuffer(body[:cut], "<f4")
        at = addresses + self._gaps(addresses, self._packed_starts)
        refuse_infinite(values, at)
        flat[at] = values
        return torch.from_numpy(flat)


def largest(values: NDArray[np.float32], count: int) -> Addresses:
    """Return the rising addresses of the ``count`` largest magnitudes, the lowest among equals."""
    magnitudes = values.view(np.uint32) & np.uint32(0x7FFFFFFF)  # ordered as the floats, NaN on top
    limit = np.partition(magnitudes, values.size - count)[values.size - count]
    above = np.flatnonzero(magnitudes > limit)
    level = np.flatnonzero(magnitudes == limit)[: count - above.size]
    return np.sort(np.concatenate([above, level]))


def largest_of(vector: Tensor, count: int) -> Tensor | None:
    """Return what ``largest`` returns of a vector (n,), as int64 on its own device.

    The smallest magnitude that is kept is found bit by bit, by counting.

    Returns:
        None if it is 0: which zeros are kept depends on the padding, which this does not know.
    """
    magnitudes = vector.detach().float().view(torch.int32) & 0x7FFFFFFF
    limit = 0
    for bit in reversed(range(31)):
        if int((magnitudes >= limit | 1 << bit).sum()) >= count:
            limit |= 1 << bit
    if not limit:
        return None
    above = _where(magnitudes > limit)
    level = _where(magnitudes == limit)[: count - len(above)]
    return torch.cat([above, level]).sort().values


def _where(chosen: Tensor) -> Tensor:
    """The indices (m,) of what is true of ``chosen`` (n,), piece by piece: n may be large."""
    parts = torch.split(chosen, PIECE)
    return torch.cat([part.nonzero().view(-1) + PIECE * at for at, part in enumerate(parts)])


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
