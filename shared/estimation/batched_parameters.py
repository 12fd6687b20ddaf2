"""Many perturbed points at once: point p of a batch is computed with θ + s_p·z_p.

A batch of P points is laid out point by point, so a layer's input (P·B, T, k) is (P, B·T, k) too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from shared.directions import Directions
from shared.estimation.blockwise import FlatParameter, rows_of_block
from shared.randomness.streams import Key

STACK_ELEMENTS = 1 << 22  # of a matrix, all points together, that are built at a time


@runtime_checkable
class Factored(Directions, Protocol):
    """A family whose matrices are products a·bᵀ / √rank that need not be built."""

    rank: int

    def factors(
        self, keys: Sequence[Key], start: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The factors a (K, r, m) and b (K, r, n) of the matrix (m, n) at ``start``."""

    def signs(self, keys: Sequence[Key], start: int, device: torch.device) -> Tensor:
        """The direction z (K, size) of the tensor, no matrix, at ``start``."""


class BatchedParameters(Protocol):
    """θ + scales[p] * z(keys[p]) for some points, made from θ layer by layer; θ is read only."""

    @property
    def keys(self) -> Sequence[Key]:
        """One for each point (P,)."""

    def part(self, first: int, stop: int) -> "BatchedParameters":
        """The parameters at points ``first`` to below ``stop``."""

    def product(
        self, x: Tensor, parameter: FlatParameter, inner: int, bias: Tensor | None
    ) -> Tensor:
        """``x`` (P, R, k) times each point's matrix, plus its bias (P, 1, n): (P, R, n).

        k is the matrix's axis ``inner``.
        """

    def rows(self, ids: Tensor, parameter: FlatParameter) -> Tensor:
        """Rows (P, N, width) of each point's matrix, by ``ids`` (P, N)."""

    def stack(self, parameter: FlatParameter) -> Tensor:
        """Each point's tensor (P, *shape), of one that is no matrix."""


def perturb_all(
    directions: Directions, keys: Sequence[Key], scales: Sequence[float]
) -> BatchedParameters:
    """Make the parameters θ + scales[p] * z(keys[p]) of each point p."""
    if isinstance(directions, Factored):
        return FactoredParameters(list(keys), tuple(scales), directions)
    return StackedParameters(list(keys), tuple(scales), directions)


@dataclass(frozen=True)
class FactoredParameters:
    """Low-rank directions: one product with θ for all points, and a thin one for each.

    y = x·Wᵀ + s·(x·b)·aᵀ / √r, so a query costs little more than its share of a large batch.
    """

    keys: Sequence[Key]
    scales: tuple[float, ...]
    directions: Factored

    def part(self, first: int, stop: int) -> "FactoredParameters":
        """The parameters at points ``first`` to below ``stop``."""
        return replace(self, keys=self.keys[first:stop], scales=self.scales[first:stop])

    def product(
        self, x: Tensor, parameter: FlatParameter, inner: int, bias: Tensor | None
    ) -> Tensor:
        weight = parameter.values.view(parameter.shape)
        plain = x.reshape(-1, x.shape[2]) @ (weight.t() if inner else weight)
        out = plain.view(*x.shape[:2], -1)
        a, b = self._factors(parameter, x.device)
        within, across = (b, a * self._weights(x)) if inner else (a, b * self._weights(x))
        thin = torch.bmm(x, within.transpose(1, 2))  # (P, R, r)
        if bias is not None:  # one more column, so that ``out`` is written once
            thin, across = F.pad(thin, (0, 1), value=1.0), torch.cat([across, bias], 1)
        return out.baddbmm_(thin, across)

    def rows(self, ids: Tensor, parameter: FlatParameter) -> Tensor:
        chosen = F.embedding(ids, parameter.values.view(parameter.shape))
        a, b = self._factors(parameter, ids.device)
        named = a.gather(2, ids[:, None].expand(-1, a.shape[1], -1))  # (P, r, N)
        return chosen.baddbmm_(named.transpose(1, 2), b * self._weights(chosen))

    def stack(self, parameter: FlatParameter) -> Tensor:
        half = self._half()
        z = self.directions.signs(self.keys[:half], parameter.start, parameter.values.device)
        scales = torch.tensor(self.scales, device=z.device)[:, None]
        whole = z if half == len(self.keys) else torch.cat([z, z])
        return torch.addcmul(parameter.values, whole, scales).view(-1, *parameter.shape)

    def _factors(self, parameter: FlatParameter, device: torch.device) -> tuple[Tensor, Tensor]:
        half = self._half()
        a, b = self.directions.factors(self.keys[:half], parameter.start, device)
        return (a, b) if half == len(self.keys) else (torch.cat([a, a]), torch.cat([b, b]))

    def _half(self) -> int:
        """The number of keys to draw: each once, if both signs of all are here."""
        half = len(self.keys) // 2
        return half if half and self.keys[:half] == self.keys[half:] else len(self.keys)

    def _weights(self, like: Tensor) -> Tensor:
        """Scale over the root of the rank (P, 1, 1), rounded once."""
        weights = np.array(self.scales) / sqrt(self.directions.rank)
        return torch.tensor(weights, dtype=like.dtype, device=like.device)[:, None, None]


@dataclass(frozen=True)
class StackedParameters:
    """Any family: each point's matrix is built, all points' side by side, a block at a time."""

    keys: Sequence[Key]
    scales: tuple[float, ...]
    directions: Directions

    def part(self, first: int, stop: int) -> "StackedParameters":
        """The parameters at points ``first`` to below ``stop``."""
        return replace(self, keys=self.keys[first:stop], scales=self.scales[first:stop])

    def product(
        self, x: Tensor, parameter: FlatParameter, inner: int, bias: Tensor | None
    ) -> Tensor:
        height, width = parameter.shape
        step = rows_of_block(height, width, max(STACK_ELEMENTS // len(self.keys), width))
        out = x.new_zeros(*x.shape[:2], parameter.shape[1 - inner])
        if bias is not None:
            out += bias
        for first in range(0, height, step):
            rows = slice(first, min(first + step, height))
            piece = FlatParameter(
                parameter.values[rows.start * width : rows.stop * width],
                parameter.start + rows.start * width,
                (rows.stop - rows.start, width),
            )
            if inner:
                out[:, :, rows].baddbmm_(x, self.stack(piece).transpose(1, 2))
            else:
                out.baddbmm_(x[:, :, rows], self.stack(piece))
        return out

    def rows(self, ids: Tensor, parameter: FlatParameter) -> Tensor:
        chosen = F.embedding(ids, parameter.values.view(parameter.shape))
        for p, (key, scale) in enumerate(zip(self.keys, self.scales, strict=True)):
            self.directions.add_rows_(chosen[p], ids[p].contiguous(), parameter.start, key, scale)
        return chosen

    def stack(self, parameter: FlatParameter) -> Tensor:
        stacked = parameter.values.new_empty(len(self.keys), parameter.values.numel())
        for p, (key, scale) in enumerate(zip(self.keys, self.scales, strict=True)):
            self.directions.perturb_(stacked[p], parameter.values, parameter.start, key, scale)
        return stacked.view(-1, *parameter.shape)
