"""Perturbed parameters in pieces: products with their blocks, the rows looked up, or one tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from shared.base.flat import TILE, Matrix, ask_for_huge_pages
from shared.directions import Directions, Multiplies
from shared.randomness.streams import Key


@dataclass(frozen=True, slots=True)
class FlatParameter:
    """A trainable parameter as a part of the flat vector."""

    values: Tensor  # (size,)
    start: int  # flat address of the first
    shape: tuple[int, ...]
    copy: Tensor | None = None  # (*shape): where it is at this point, if it is small


@dataclass(frozen=True, slots=True)
class PerturbedPoint:
    """θ + scale * z(key), made from θ piece by piece; θ is read only.

    Each number has the bits that it would have if θ were perturbed in place. A product that is
    split along its inner dimension adds up in another order, so it is equal to rounding.
    """

    directions: Directions
    scratch: Tensor  # (n,), holds one block at a time
    key: Key
    scale: float
    multiplies: Multiplies | None = None  # the directions, where they have a product of their own

    def whole(self, held: FlatParameter) -> Tensor:
        """Return the perturbed tensor; a large one takes its own memory until it is dropped."""
        if held.copy is not None:
            return held.copy
        out = torch.empty_like(held.values)
        self.directions.perturb_(out, held.values, held.start, self.key, self.scale)
        return out.view(held.shape)

    def rows(self, ids: Tensor, held: FlatParameter) -> Tensor:
        """Return the perturbed rows (*ids.shape, width) of a matrix (height, width)."""
        chosen = F.embedding(ids, held.values.view(held.shape))
        lines, named = chosen.view(-1, held.shape[1]), ids.reshape(-1)
        self.directions.add_rows_(lines, named, held.start, self.key, self.scale)
        return chosen

    def fits(self, x: Tensor, held: FlatParameter, inner: int) -> bool:
        """Tell whether ``x`` (..., k) can be multiplied by blocks of a matrix; k at ``inner``."""
        return (
            len(held.shape) == 2
            and held.values.numel() > self.scratch.numel() >= held.shape[1]
            and x.dim() > 0
            and x.shape[-1] == held.shape[inner]
            and x.dtype is held.values.dtype
            and not torch.is_autocast_enabled(x.device.type)
            and not (x.requires_grad and torch.is_grad_enabled())
        )

    def linear(self, x: Tensor, held: FlatParameter, bias: Tensor | None) -> Tensor:
        """Return x (..., k) times a weight (n, k) transposed, plus bias (n,), as (..., n)."""
        n, k = held.shape
        flat = x.reshape(-1, k)
        if (out := self._product(flat, held, bias, transposed=True)) is not None:
            return out.view(*x.shape[:-1], n)
        out = ask_for_huge_pages(flat.new_empty(flat.shape[0], n))
        for rows, block in self._blocks(held):
            if bias is None:
                torch.mm(flat, block.t(), out=out[:, rows])
            else:
                torch.addmm(bias[rows], flat, block.t(), out=out[:, rows])
        return out.view(*x.shape[:-1], n)

    def matmul(self, x: Tensor, held: FlatParameter, bias: Tensor | None) -> Tensor:
        """Return x (..., k) times a weight (k, n), plus a bias that broadcasts, as (..., n)."""
        k, n = held.shape
        flat = x.reshape(-1, k)
        if (out := self._product(flat, held, bias, transposed=False)) is not None:
            return out.view(*x.shape[:-1], n)
        out = ask_for_huge_pages(flat.new_empty(flat.shape[0], n))
        for rows, block in self._blocks(held):
            if rows.start:
                out.addmm_(flat[:, rows], block)
            elif bias is None:
                torch.mm(flat[:, rows], block, out=out)
            else:
                torch.addmm(bias, flat[:, rows], block, out=out)
        return out.view(*x.shape[:-1], n)

    def _product(
        self, x: Tensor, held: FlatParameter, bias: Tensor | None, *, transposed: bool
    ) -> Tensor | None:
        """Return the product (m, n) where the family has its own for it."""
        height, width = held.shape
        n = height if transposed else width
        if self.multiplies is None or not (bias is None or bias.shape == (n,)):
            return None
        matrix = Matrix(held.values, held.start, (height, width), transposed)
        return self.multiplies.product(x, matrix, bias, self.key, self.scale, self.scratch)

    def _blocks(self, held: FlatParameter) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows of a matrix and, in the scratch, what they are at this point."""
        height, width = held.shape
        step = rows_of_block(height, width, self.scratch.numel())
        for first in range(0, height, step):
            rows = slice(first, min(height, first + step))
            begin, end = rows.start * width, rows.stop * width
            block, source = self.scratch[: end - begin], held.values[begin:end]
            self.directions.perturb_(block, source, held.start + begin, self.key, self.scale)
            yield rows, block.view(-1, width)


def rows_of_block(height: int, width: int, room: int) -> int:
    """Return how many rows of a matrix (height, width) make a block of at most ``room`` elements.

    Blocks are about equal, and begin at whole tiles where room allows: those are quickest to draw.
    """
    most, tiled = room // width, TILE // gcd(width, TILE)
    even = -(-height // -(-height // most))
    up = -(-even // tiled) * tiled
    return up if up <= most else most // tiled * tiled or most
