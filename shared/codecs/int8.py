"""One signed byte per number and one scale per tile of 2,048."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from shared.base.errors import WireError
from shared.base.flat import TILE, Layout
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

_NAME = b"int8"


@CODECS.register("int8")
@dataclass(frozen=True)
class Int8:
    """Body: one float32 scale per tile, then one int8 per parameter; a number is scale * int8.

    Tiles are the layout's, so none spans two tensors. With M the largest magnitude of a tile,
    |error| <= (1/254 + 2^-22) M: half a level, then float32's own rounding. A tile with M below
    127 * 2^-126 decodes to zeros; one that holds the largest float32 overflows and is refused.
    """

    layout: Layout

    @property
    def payload_bytes(self) -> int:
        """16 + 1 per parameter + 4 per tile."""
        return HEADER_BYTES + self.layout.parameters + 4 * (self.layout.size // TILE)

    def encode(self, vector: Tensor) -> bytes:
        """Encode ``vector`` (size,), padding zero."""
        tiles = numbers(self.layout, vector).reshape(-1, TILE)
        scales = np.abs(tiles).max(axis=1) / np.float32(127)
        scales[scales < np.finfo(np.float32).tiny] = 0  # too small for half a level to be exact
        usable = (np.isfinite(scales) & (scales > 0))[:, None]  # the others' levels stay zero
        levels = np.divide(tiles, scales[:, None], out=np.zeros_like(tiles), where=usable)
        bytes_ = pack_vector(self.layout, np.rint(levels, out=levels).astype(np.int8).ravel())
        body = scales.astype("<f4", copy=False).tobytes() + bytes_.tobytes()
        return seal_frame(_NAME, self.layout.parameters, body)

    def decode(self, payload: bytes) -> Tensor:
        """Return the rounded vector (size,); WireError where the payload is not whole or finite."""
        body = open_frame(_NAME, self.layout.parameters, self.payload_bytes, payload)
        cut = 4 * (self.layout.size // TILE)
        scales = np.frombuffer(body[:cut], "<f4").astype(np.float32, copy=False)
        if not np.isfinite(scales).all():
            raise WireError(f"finite scales expected, got {scales[~np.isfinite(scales)][0]}")
        levels = unpack_vector(self.layout, np.frombuffer(body[cut:], np.int8))
        with np.errstate(over="ignore"):  # an infinite product is refused by name just below
            tiles = levels.reshape(-1, TILE) * scales[:, None]
        return check_finite(tiles.ravel())
