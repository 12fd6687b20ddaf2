"""Low-rank directions: a matrix's z is a few outer products of signs, which need not be built.

For a matrix (m, n), z = Σ_j a_j·b_jᵀ / √r over j < r, the rank; a_j (m,) and b_j (n,) are signs.
Any other tensor gets independent signs. The signs are ``rademacher``'s, but in an address space of
their own, in which a matrix takes r·m and then r·n of them, each lot from a whole tile on.

A product x·(W + εz)ᵀ is x·Wᵀ + ε·(x·b)·aᵀ, so many directions share one batched forward: EGGROLL
(Sarkar et al. 2025, https://arxiv.org/abs/2511.16652). Each of the r products is added and rounded
alone, and a coefficient times a sign is exact: every device computes the same sums.
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
from shared.directions.rademacher import kernels_at, kernels_for, signs
from shared.randomness.streams import Key

FUSED = 1 << 22  # signs of a matrix's factors that are held at once: keys that share a pass


@dataclass(frozen=True, slots=True)
class Factors:
    """Where a tensor's signs are: r·m for the rows of a matrix, r·n for its columns."""

    span: TensorSpan
    rows: int  # address of the first, in the factors' own space
    columns: int  # the same; not used where the tensor is no matrix

    @property
    def is_matrix(self) -> bool:
        """Whether z is a product here; otherwise signs are independent."""
        return len(self.span.shape) == 2


def factors_of(layout: Layout, rank: int) -> list[Factors]:
    """The factors' address space: tensor after tensor, each lot of signs at a whole tile."""
    found, address = [], 0
    for span in layout.tensors:
        matrix = len(span.shape) == 2
        lots = [rank * size for size in span.shape] if matrix else [span.size, 0]
        first, second = (-(-size // TILE) * TILE for size in lots)
        found.append(Factors(span, address, address + first))
        address += first + second
    return found


def reference(factors: Factors, rank: int, key: Key, coefficient: float) -> NDArray[np.float32]:
    """Return coefficient * z of a whole tensor (r, size): the r terms that are added in turn.

    Every kernel must equal it; where the tensor is no matrix, there is one term.
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
        self._starts = [found.span.start for found in self._factors]

    def add_to_(
        self, flat: Tensor, keys: Sequence[Key], coefficients: Sequence[float], start: int = 0
    ) -> None:
        if len(keys) != len(coefficients):
            raise ValueError(f"{len(keys)} keys came with {len(coefficients)} coefficients")
        for found, part, first in self._parts(flat, start):
            if found.is_matrix:
                self._add_products_(part, part, found, first, keys, coefficients)
            elif keys:
                kernels_for(part).add_to_(part, keys, coefficients, found.rows + first)

    def perturbed_(self, out: Tensor, source: Tensor, start: int, key: Key, scale: float) -> None:
        if out.numel() != source.numel():
            raise ValueError(f"out {tuple(out.shape)} does not fit source {tuple(source.shape)}")
        done = 0
        for found, part, first in self._parts(out, start):
            at = found.span.start + first - start
            out[done:at] = source[done:at]
            done = at + part.numel()
            if found.is_matrix:
                self._add_products_(part, source[at:done], found, first, [key], [scale])
            else:
                origin, address = source[at:done], found.rows + first
                kernels_for(part).perturbed_(part, origin, address, key, scale)
        out[done:] = source[done:]

    def add_rows_(self, rows: Tensor, ids: Tensor, start: int, key: Key, scale: float) -> None:
        if rows.shape[:-1] != ids.shape:
            raise ValueError(f"ids {tuple(ids.shape)} do not name rows {tuple(rows.shape)}")
        kernels_for(rows)
        a, b = self.factors([key], start, rows.device)
        weight = float(np.float32(scale / sqrt(self.rank)))
        for j in range(self.rank):
            rows += (a[0, j, ids] * weight)[:, None] * b[0, j]

    def factors(
        self, keys: Sequence[Key], start: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The signs a (K, r, m) and b (K, r, n) of the matrix that begins at ``start``."""
        found = self._at(start)
        m, n = found.span.shape
        a = _drawn(keys, found.rows, self.rank * m, device)
        b = _drawn(keys, found.columns, self.rank * n, device)
        return a.view(-1, self.rank, m), b.view(-1, self.rank, n)

    def signs(self, keys: Sequence[Key], start: int, device: torch.device) -> Tensor:
        """The direction z (K, size) of the tensor, no matrix, that begins at ``start``."""
        found = self._at(start)
        return _drawn(keys, found.rows, found.span.size, device)

    def _at(self, start: int) -> Factors:
        return self._factors[bisect_right(self._starts, start) - 1]

    def _parts(self, flat: Tensor, start: int) -> Iterator[tuple[Factors, Tensor, int]]:
        """The tensors that ``flat`` (n,) has parts of: which, the part, its first element."""
        number = max(bisect_right(self._starts, start) - 1, 0)
        for found in self._factors[number:]:
            low, high = max(found.span.start, start), min(found.span.stop, start + flat.numel())
            if found.span.start >= start + flat.numel():
                return
            if low < high:
                yield found, flat[low - start : high - start], low - found.span.start

    def _add_products_(
        self,
        out: Tensor,
        source: Tensor,
        found: Factors,
        first: int,
        keys: Sequence[Key],
        coefficients: Sequence[float],
    ) -> None:
        """Write source + Σ coefficient * z into ``out`` (n,), elements of a matrix from ``first``.

        So many keys share a pass that their signs stay few, however many keys there are.
        """
        m, n = found.span.shape
        top, bottom = first // n, -(-(first + out.numel()) // n)
        step = max(1, FUSED // (self.rank * (bottom - top + n)))
        kernels = _kernels_for(out)
        for at in range(0, len(keys), step):
            some = keys[at : at + step]
            scales = np.array(coefficients[at : at + step], np.float64) / sqrt(self.rank)
            starts = range(found.rows + top, found.rows + self.rank * m, m)
            lots = [_drawn(some, start, bottom - top, out.device) for start in starts]
            a = torch.stack(lots, 1).view(-1, bottom - top)
            b = _drawn(some, found.columns, self.rank * n, out.device).view(-1, n)
            kernels.add_products_(out, source, first - top * n, a, b, np.repeat(scales, self.rank))
            source = out


def _drawn(keys: Sequence[Key], address: int, count: int, device: torch.device) -> Tensor:
    """Signs (K, count) of the factors' space from ``address`` on."""
    drawn = torch.zeros(len(keys), count, device=device)
    if count:
        kernels_for(drawn).add_each_(drawn, keys, address)
    return drawn


def _kernels_for(tensor: Tensor) -> ModuleType:
    """Return the module whose products work where ``tensor`` is, once it is what they trust."""
    kernels_for(tensor)
    return kernels_at("lowrank", tensor.device.type)
