"""Sign directions: each z_i is +1 or -1 with probability 1/2, one random bit each.

``signs`` defines them. A tile is 2,048 elements = 16 consecutive blocks of the generator x 4 words
x 32 bits. Element e of a tile takes bit e // 64 of word (e % 64) // 16 of block e % 16, and a set
bit means -1. Neighbours take the same bit of neighbouring words, which suits vector units.

A coefficient times a sign is exact, so even a fused multiply-add changes no bit and every device
computes the same sums. Source of the estimate along signs: Spall, IEEE TAC 37(3), 1992.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.base.flat import TILE, TILE_BLOCKS, TILE_WORDS, Layout, Matrix
from shared.directions import DIRECTIONS, KeySlot
from shared.directions.backends import (
    check_ids,
    check_pairs,
    check_source,
    kernels_at,
    kernels_for,
    products_at,
)
from shared.randomness.philox import words
from shared.randomness.streams import Key


def signs(key: Key, addresses: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return z (n,) at these flat addresses (n,): the reference that every kernel must equal."""
    tile, element = np.divmod(addresses, TILE)
    lane = element % TILE_WORDS
    drawn = words(key, tile * TILE_BLOCKS + lane % TILE_BLOCKS)  # (n, 4)
    word = drawn[np.arange(len(drawn)), lane // TILE_BLOCKS]
    bit = word >> (element // TILE_WORDS).astype(np.uint32) & np.uint32(1)
    return np.where(bit, np.float32(-1), np.float32(1))


@DIRECTIONS.register("rademacher")
class Rademacher:
    """Independent signs; the layout does not matter to them. Vectors are float32, contiguous."""

    exact: ClassVar[bool] = True
    pointwise: ClassVar[bool] = True

    def __init__(self, layout: Layout) -> None:
        del layout

    def add_to_(
        self, flat: Tensor, keys: Sequence[Key], coefficients: Sequence[float], start: int = 0
    ) -> None:
        check_pairs(keys, coefficients)
        if keys:
            kernels_for(flat).add_to_(flat, keys, coefficients, start)

    def perturb_(self, out: Tensor, source: Tensor, start: int, key: Key, scale: float) -> None:
        check_source(out, source)
        kernels = kernels_for(out)
        if kernels is not kernels_for(source):
            raise ValueError(f"out on {out.device} does not fit source on {source.device}")
        kernels.perturb_(out, source, start, key, scale)

    def add_rows_(self, rows: Tensor, ids: Tensor, start: int, key: Key, scale: float) -> None:
        check_ids(rows, ids)
        kernels_for(rows).add_rows_(rows, ids, start, key, scale)

    def has_bfloat16(self, device: str) -> bool:
        return getattr(kernels_at("rademacher", device), "HAS_BFLOAT16", False)

    def slot(self, device: torch.device) -> KeySlot | None:
        make: Callable[[torch.device], KeySlot] | None
        make = getattr(kernels_at("rademacher", device.type), "DeviceSlot", None)
        return None if make is None else make(device)

    def product(
        self,
        x: Tensor,
        matrix: Matrix,
        bias: Tensor | None,
        key: Key,
        scale: float,
        scratch: Tensor,
    ) -> Tensor | None:
        if x.dtype is not torch.float32 or matrix.values.dtype is not torch.float32:
            return None
        products = products_at(x.device.type)
        if products is None or not products.fits(x, matrix, scratch):
            return None
        out: Tensor = products.product(x, matrix, bias, key, scale, scratch)
        return out
