"""Perturbed parameters in pieces: products with their blocks, looked-up rows, or a whole tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from shared.directions import Directions, Key
from shared.flat import TILE


@dataclass(frozen=True, slots=True)
class Held:
    """A trainable parameter as a part of the flat vector."""

    values: Tensor  # (size,)
    start: int  # address of the first
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """θ + scale * z(key), built from θ piece by piece; every number has the bits that it would have
    if θ were perturbed in place.

    Products add up in another order than a whole product does where they are split along the inner
    dimension, so they equal it to rounding. A block is read while it is in cache.
    """

    directions: Directions
    scratch: Tensor  # (n,), overwritten by every product
    key: Key
    scale: float

    def whole(self, held: Held) -> Tensor:
        """Return the perturbed tensor; costs its memory until it is dropped."""
        out = torch.empty_like(held.values)
        self.directions.perturbed_(out, held.values, held.start, self.key, self.scale)
        return out.view(held.shape)

    def rows(self, ids: Tensor, held: Held) -> Tensor:
        """Return the perturbed rows (*ids.shape, width) of a matrix."""
        width = held.shape[1]
        chosen = F.embedding(ids, held.values.view(held.shape))
        where, lines = ids.reshape(-1), chosen.view(-1, width)
        self.directions.add_rows_(lines, where, held.start, self.key, self.scale)
        return chosen

    def linear(self, x: Tensor, held: Held, bias: Tensor | None) -> Tensor:
        """Return x (..., k) times the transpose of a weight (n, k), plus bias (n,), as (..., n)."""
        n, k = held.shape
        flat = x.reshape(-1, k)
        out = flat.new_empty(flat.shape[0], n)
        for rows, block in self._blocks(held):
            if bias is None:
                torch.mm(flat, block.t(), out=out[:, rows])
            else:
                torch.addmm(bias[rows], flat, block.t(), out=out[:, rows])
        return out.view(*x.shape[:-1], n)

    def matmul(self, x: Tensor, held: Held, bias: Tensor | None) -> Tensor:
        """Return x (..., k) times a weight (k, n), plus a bias that broadcasts, as (..., n)."""
        k, n = held.shape
        flat = x.reshape(-1, k)
        out = flat.new_empty(flat.shape[0], n)
        for rows, block in self._blocks(held):
            if rows.start:
                out.addmm_(flat[:, rows], block)
            elif bias is None:
                torch.mm(flat[:, rows], block, out=out)
            else:
                torch.addmm(bias, flat[:, rows], block, out=out)
        return out.view(*x.shape[:-1], n)

    def _blocks(self, held: Held) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows of a matrix and, in the scratch, what they are at this point."""
        height, width = held.shape
        step = rows_of_block(height, width, self.scratch.numel())
        for first in range(0, height, step):
            rows = slice(first, min(height, first + step))
            begin, end = rows.start * width, rows.stop * width
            block = self.scratch[: end - begin]
            source, start = held.values[begin:end], held.start + begin
            self.directions.perturbed_(block, source, start, self.key, self.scale)
            yield rows, block.view(-1, width)


def rows_of_block(height: int, width: int, room: int) -> int:
    """Return how many rows of a matrix (height, width) to treat at once in ``room`` elements.

    Blocks are of about equal height, and begin at whole tiles where that fits, which costs least.
    """
    most = room // width
    blocks = -(-height // most)
    even, whole = -(-height // blocks), TILE // gcd(width, TILE)
    aligned = -(-even // whole) * whole
    if aligned > most:
        aligned = most // whole * whole
    return aligned or most
