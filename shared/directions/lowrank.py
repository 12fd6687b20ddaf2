"""Low-rank directions: a matrix's z is a sum of a few outer products of random signs.

For a matrix (m, n) and rank r, z = Σ_j a_j·b_jᵀ / √r over j < r; a_j (m,) and b_j (n,) are signs.
Any other tensor has independent signs. The signs are those of ``rademacher``, in an address space
of their own: a matrix takes r·m signs and then r·n, each of the two from the start of a tile.

Source: EGGROLL (Sarkar et al. 2025, https://arxiv.org/abs/2511.16652). A product x·(W + εz)ᵀ is
x·Wᵀ + ε·(x·b)·aᵀ, so many directions can share one batched forward pass. Each of the r products is
added and rounded alone, and a coefficient times a sign is exact: every device has the same sums.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from types import ModuleType
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.base.errors import ConfigError
from shared.base.flat import TILE, Layout, TensorSpan
from shared.base.options import option
from shared.directions import DIRECTIONS
from shared.directions.backends import (
    check_ids,
    check_pairs,
    check_source,
    check_tensor,
    kernels_for,
)
from shared.directions.rademacher import signs
from shared.randomness.streams import Key

FUSED_SIGNS = 1 << 22  # of a matrix's factors that one pass holds: it bounds the keys of a pass
DRAWN_SIGNS = 1 << 27  # of all factors and keys of a batch, that a card draws at once: 512 MiB


@dataclass(frozen=True, slots=True)
class Factors:
    """The addresses of a tensor's signs: r·m for the rows of a matrix, r·n for its columns."""

    span: TensorSpan
    rows: int  # address of the first sign, in the factors' own space
    columns: int  # the same; not used if the tensor is no matrix
    stop: int  # behind the last sign, on a whole tile

    @property
    def is_matrix(self) -> bool:
        """Whether z is a sum of products here; otherwise its signs are independent."""
        return len(self.span.shape) == 2


def factors_of(layout: Layout, rank: int) -> list[Factors]:
    """Lay out the factors' address space: tensor after tensor, rows and columns on whole tiles."""
    factors, address = [], 0
    for span in layout.tensors:
        matrix = len(span.shape) == 2
        counts = [rank * size for size in span.shape] if matrix else [span.size, 0]
        first, second = (-(-count // TILE) * TILE for count in counts)
        factors.append(Factors(span, address, address + first, address + first + second))
        address += first + second
    return factors


def reference(factors: Factors, rank: int, key: Key, coefficient: float) -> NDArray[np.float32]:
    """Return coefficient * z of a whole tensor (r, size): the r terms that are added in turn.

    Every kernel must equal it. A tensor that is no matrix has one term.
    """
    span = factors.span
    if not factors.is_matrix:
        drawn = signs(key, np.arange(factors.rows, factors.rows + span.size))
        return np.float32(coefficient) * drawn[None]
    m, n = span.shape
    a = signs(key, np.arange(factors.rows, factors.rows + rank * m)).reshape(rank, m, 1)
    b = signs(key, np.arange(factors.columns, factors.columns + rank * n)).reshape(rank, 1, n)
    scale = np.float32(coefficient / sqrt(rank))
    return (scale * (a * b)).reshape(rank, span.size)


@DIRECTIONS.register("lowrank")
@dataclass
class Lowrank:
    """Products of signs for matrices, signs for all else; vectors are float32, contiguous.

    Padding is left as it is.
    """

    exact: ClassVar[bool] = True
    pointwise: ClassVar[bool] = False

    layout: Layout
    rank: int = option(
        1,
        "outer products that a matrix's direction is the sum of",
        key="direction-rank",
        at_least=1,
    )

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"direction-rank of at least 1 expected, got {self.rank}")
        self._factors = factors_of(self.layout, self.rank)
        self._starts = [factors.span.start for factors in self._factors]

    def add_to_(
        self, flat: Tensor, keys: Sequence[Key], coefficients: Sequence[float], start: int = 0
    ) -> None:
        check_pairs(keys, coefficients)
        for factors, part, first in self._parts(flat, start):
            if factors.is_matrix:
                self._add_products_(part, part, factors, first, keys, coefficients)
            elif keys:
                kernels_for(part).add_to_(part, keys, coefficients, factors.rows + first)

    def perturb_(self, out: Tensor, source: Tensor, start: int, key: Key, scale: float) -> None:
        check_source(out, source)
        done = 0
        for factors, part, first in self._parts(out, start):
            at = factors.span.start + first - start
            out[done:at] = source[done:at]
            done = at + part.numel()
            if factors.is_matrix:
                self._add_products_(part, source[at:done], factors, first, [key], [scale])
            else:
                origin, address = source[at:done], factors.rows + first
                kernels_for(part).perturb_(part, origin, address, key, scale)
        out[done:] = source[done:]

    def add_rows_(self, rows: Tensor, ids: Tensor, start: int, key: Key, scale: float) -> None:
        check_ids(rows, ids)
        check_tensor(rows)
        a, b = self.factors([key], start, rows.device)
        weight = float(np.float32(scale / sqrt(self.rank)))
        for j in range(self.rank):
            rows += (a[0, j, ids] * weight)[:, None] * b[0, j]

    def factors(
        self,
        keys: Sequence[Key],
        start: int,
        device: torch.device,
        drawn: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw the signs a (K, r, m) and b (K, r, n) of the matrix that begins at ``start``.

        They are parts of ``drawn``, if that is what ``draw_all`` returned for these keys.
        """
        factors = self._factors_at(start)
        m, n = factors.span.shape
        if drawn is None:
            a = _draw_signs(keys, factors.rows, self.rank * m, device)
            b = _draw_signs(keys, factors.columns, self.rank * n, device)
        else:
            a = drawn[:, factors.rows : factors.rows + self.rank * m]
            b = drawn[:, factors.columns : factors.columns + self.rank * n]
        return a.view(-1, self.rank, m), b.view(-1, self.rank, n)

    def signs(
        self,
        keys: Sequence[Key],
        start: int,
        device: torch.device,
        drawn: Tensor | None = None,
    ) -> Tensor:
        """Draw z (K, size) of the tensor that begins at ``start`` and is no matrix.

        It is a part of ``drawn``, if that is what ``draw_all`` returned for these keys.
        """
        factors = self._factors_at(start)
        if drawn is None:
            return _draw_signs(keys, factors.rows, factors.span.size, device)
        return drawn[:, factors.rows : factors.rows + factors.span.size]

    def draw_all(self, keys: Sequence[Key], device: torch.device) -> Tensor | None:
        """Draw the signs (K, n) of all factors in one launch, on a card that has room for them.

        Returns:
            None on a processor, where nothing is launched, and if they are more than DRAWN_SIGNS.
        """
        size = self._factors[-1].stop if self._factors else 0
        if device.type != "cuda" or size * len(keys) > DRAWN_SIGNS:
            return None
        return _draw_signs(keys, 0, size, device)

    def _factors_at(self, start: int) -> Factors:
        return self._factors[bisect_right(self._starts, start) - 1]

    def _parts(self, flat: Tensor, start: int) -> Iterator[tuple[Factors, Tensor, int]]:
        """Yield factors, part and the part's first element of each tensor in ``flat`` (n,)."""
        number = max(bisect_right(self._starts, start) - 1, 0)
        for factors in self._factors[number:]:
            span = factors.span
            low, high = max(span.start, start), min(span.stop, start + flat.numel())
            if span.start >= start + flat.numel():
                return
            if low < high:
                yield factors, flat[low - start : high - start], low - span.start

    def _add_products_(
        self,
        out: Tensor,
        source: Tensor,
        factors: Factors,
        first: int,
        keys: Sequence[Key],
        coefficients: Sequence[float],
    ) -> None:
        """Write source + Σ coefficient * z into ``out`` (n,), elements of a matrix from ``first``.

        The keys are taken in passes, so that memory does not grow with their number.
        """
        m, n = factors.span.shape
        top, bottom = first // n, -(-(first + out.numel()) // n)
        step = max(1, FUSED_SIGNS // (self.rank * (bottom - top + n)))
        kernels = _products_for(out)
        for at in range(0, len(keys), step):
            some = keys[at : at + step]
            scales = np.array(coefficients[at : at + step], np.float64) / sqrt(self.rank)
            starts = range(factors.rows + top, factors.rows + self.rank * m, m)
            rows = [_draw_signs(some, start, bottom - top, out.device) for start in starts]
            a = torch.stack(rows, 1).view(-1, bottom - top)
            b = _draw_signs(some, factors.columns, self.rank * n, out.device).view(-1, n)
            kernels.add_products_(out, source, first - top * n, a, b, np.repeat(scales, self.rank))
            source = out


def _draw_signs(keys: Sequence[Key], address: int, count: int, device: torch.device) -> Tensor:
    """Draw the signs (K, count) of the factors' space from ``address`` on."""
    drawn = torch.zeros(len(keys), count, device=device)
    if count:
        kernels_for(drawn).add_each_(drawn, keys, address)
    return drawn


def _products_for(tensor: Tensor) -> ModuleType:
    """Return the module with products of signs for the device of ``tensor``."""
    return kernels_for(tensor, "lowrank")
