"""One perturbed point, made from θ in pieces: blocks of a matrix, rows of a table, or a tensor."""

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
    copy: Tensor | None = None  # (*shape): its perturbed copy, if it is small
    name: str = ""  # in the module


@dataclass(frozen=True, slots=True)
class PerturbedPoint:
    """θ + scale * z(key), made from θ piece by piece; θ is read only.

    Each number has the bits that it would have if θ were perturbed in place. A product that is
    split along its inner dimension adds up in another order, so it is equal to rounding.
    """

    directions: Directions
    scratch: Tensor  # (n,) for one block at a time
    key: Key
    scale: float
    multiplies: Multiplies | None = None  # the directions, if they have a product of their own

    def whole(self, parameter: FlatParameter) -> Tensor:
        """Return the perturbed tensor; a large one takes its own memory until it is dropped."""
        if parameter.copy is not None:
            return parameter.copy
        out = torch.empty_like(parameter.values)
        self.directions.perturb_(out, parameter.values, parameter.start, self.key, self.scale)
        return out.view(parameter.shape)

    def rows(self, ids: Tensor, parameter: FlatParameter) -> Tensor:
        """Return the perturbed rows (*ids.shape, width) of a matrix (height, width)."""
        chosen = F.embedding(ids, parameter.values.view(parameter.shape))
        lines, named = chosen.view(-1, parameter.shape[1]), ids.reshape(-1)
        self.directions.add_rows_(lines, named, parameter.start, self.key, self.scale)
        return chosen

    def fits(self, x: Tensor, parameter: FlatParameter, inner: int) -> bool:
        """Whether ``x`` (..., k) can go through a matrix by blocks; k is its axis ``inner``."""
        return (
            len(parameter.shape) == 2
            and parameter.values.numel() > self.scratch.numel() >= parameter.shape[1]
            and x.dim() > 0
            and x.shape[-1] == parameter.shape[inner]
            and x.dtype is parameter.values.dtype
            and not torch.is_autocast_enabled(x.device.type)
            and not (x.requires_grad and torch.is_grad_enabled())
        )

    def linear(self, x: Tensor, parameter: FlatParameter, bias: Tensor | None) -> Tensor:
        """Return x (..., k) times a weight (n, k) transposed, plus bias (n,), as (..., n)."""
        n, k = parameter.shape
        flat = x.reshape(-1, k)
        if (out := self._product(flat, parameter, bias, transposed=True)) is not None:
            return out.view(*x.shape[:-1], n)
        out = ask_for_huge_pages(flat.new_empty(flat.shape[0], n))
        for rows, block in self._blocks(parameter):
            if bias is None:
                torch.mm(flat, block.t(), out=out[:, rows])
            else:
                torch.addmm(bias[rows], flat, block.t(), out=out[:, rows])
        return out.view(*x.shape[:-1], n)

    def matmul(self, x: Tensor, parameter: FlatParameter, bias: Tensor | None) -> Tensor:
        """Return x (..., k) times a weight (k, n), plus a bias that broadcasts, as (..., n)."""
        k, n = parameter.shape
        flat = x.reshape(-1, k)
        if (out := self._product(flat, parameter, bias, transposed=False)) is not None:
            return out.view(*x.shape[:-1], n)
        out = ask_for_huge_pages(flat.new_empty(flat.shape[0], n))
        for rows, block in self._blocks(parameter):
            if rows.start:
                out.addmm_(flat[:, rows], block)
            elif bias is None:
                torch.mm(flat[:, rows], block, out=out)
            else:
                torch.addmm(bias, flat[:, rows], block, out=out)
        return out.view(*x.shape[:-1], n)

    def _product(
        self, x: Tensor, parameter: FlatParameter, bias: Tensor | None, *, transposed: bool
    ) -> Tensor | None:
        """Return the product (m, n), or None if the family has no product of its own for it."""
        height, width = parameter.shape
        n = height if transposed else width
        if self.multiplies is None or not (bias is None or bias.shape == (n,)):
            return None
        matrix = Matrix(parameter.values, parameter.start, (height, width), transposed)
        return self.multiplies.product(x, matrix, bias, self.key, self.scale, self.scratch)

    def _blocks(self, parameter: FlatParameter) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows of a matrix and, in the scratch, their values at this point."""
        height, width = parameter.shape
        step = rows_of_block(height, width, self.scratch.numel())
        for first in range(0, height, step):
            rows = slice(first, min(height, first + step))
            begin, end = rows.start * width, rows.stop * width
            block, source = self.scratch[: end - begin], parameter.values[begin:end]
            self.directions.perturb_(block, source, parameter.start + begin, self.key, self.scale)
            yield rows, block.view(-1, width)


def rows_of_block(height: int, width: int, room: int) -> int:
    """Return how many rows of a matrix (height, width) make a block of at most ``room`` elements.

    Blocks are about equal, and begin at whole tiles if room allows: those are quickest to draw.
    """
    most, tiled = room // width, TILE // gcd(width, TILE)
    even = -(-height // -(-height // most))
    up = -(-even // tiled) * tiled
    return up if up <= most else most // tiled * tiled or most
