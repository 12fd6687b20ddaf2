"""Many perturbed parameters at once: what group g of a batch is multiplied with is θ + s_g·z_g.

A batch of G groups is laid out group by group, so a layer's input (G·B, T, k) is (G, B·T, k) too.
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

STACK = 1 << 22  # elements of a matrix, all groups together, that are built at a time


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
    """θ + scales[g] * z(keys[g]) for some groups, made from θ layer by layer; θ is read only."""

    @property
    def keys(self) -> Sequence[Key]:
        """One for each group (G,)."""

    def part(self, first: int, stop: int) -> "BatchedParameters":
        """Some of the groups."""

    def product(self, x: Tensor, held: FlatParameter, inner: int, bias: Tensor | None) -> Tensor:
        """``x`` (G, R, k) times each group's matrix, plus its bias (G, 1, n): (G, R, n).

        k is the matrix's axis ``inner``.
        """

    def rows(self, ids: Tensor, held: FlatParameter) -> Tensor:
        """Rows (G, N, width) of each group's matrix: row g of ``ids`` (G, N) names group g's."""

    def stack(self, held: FlatParameter) -> Tensor:
        """Each group's tensor (G, *shape), of one that is no matrix."""


def batched_parameters(
    directions: Directions, keys: Sequence[Key], eps: float
) -> BatchedParameters:
    """Every key at +eps, then every key at −eps."""
    doubled, scales = [*keys, *keys], [eps] * len(keys) + [-eps] * len(keys)
    if isinstance(directions, Factored):
        return FactoredParameters(doubled, tuple(scales), directions)
    return StackedParameters(doubled, tuple(scales), directions)


@dataclass(frozen=True)
class FactoredParameters:
    """Low-rank directions: one product with θ for all groups, and a thin one for each.

    y = x·Wᵀ + s·(x·b)·aᵀ / √r, so a query costs little more than its share of a large batch.
    """

    keys: Sequence[Key]
    scales: tuple[float, ...]
    directions: Factored

    def part(self, first: int, stop: int) -> "FactoredParameters":
        """Some of the groups."""
        return replace(self, keys=self.keys[first:stop], scales=self.scales[first:stop])

    def product(self, x: Tensor, held: FlatParameter, inner: int, bias: Tensor | None) -> Tensor:
        weight = held.values.view(held.shape)
        plain = x.reshape(-1, x.shape[2]) @ (weight.t() if inner else weight)
        out = plain.view(*x.shape[:2], -1)
        a, b = self._factors(held, x.device)
        within, across = (b, a * self._weights(x)) if inner else (a, b * self._weights(x))
        thin = torch.bmm(x, within.transpose(1, 2))  # (G, R, r)
        if bias is not None:  # one more column, so that ``out`` is passed over once
            thin, across = F.pad(thin, (0, 1), value=1.0), torch.cat([across, bias], 1)
        return out.baddbmm_(thin, across)

    def rows(self, ids: Tensor, held: FlatParameter) -> Tensor:
        chosen = F.embedding(ids, held.values.view(held.shape))
        a, b = self._factors(held, ids.device)
        named = a.gather(2, ids[:, None].expand(-1, a.shape[1], -1))  # (G, r, N)
        return chosen.baddbmm_(named.transpose(1, 2), b * self._weights(chosen))

    def stack(self, held: FlatParameter) -> Tensor:
        half = self._half()
        z = self.directions.signs(self.keys[:half], held.start, held.values.device)
        scales = torch.tensor(self.scales, device=z.device)[:, None]
        whole = z if half == len(self.keys) else torch.cat([z, z])
        return torch.addcmul(held.values, whole, scales).view(-1, *held.shape)

    def _factors(self, held: FlatParameter, device: torch.device) -> tuple[Tensor, Tensor]:
        half = self._half()
        a, b = self.directions.factors(self.keys[:half], held.start, device)
        return (a, b) if half == len(self.keys) else (torch.cat([a, a]), torch.cat([b, b]))

    def _half(self) -> int:
        """How many keys to draw: where both signs of all are here, each is drawn once."""
        half = len(self.keys) // 2
        return half if half and self.keys[:half] == self.keys[half:] else len(self.keys)

    def _weights(self, like: Tensor) -> Tensor:
        """Scale over the root of the rank (G, 1, 1), rounded once."""
        weights = np.array(self.scales) / sqrt(self.directions.rank)
        return torch.tensor(weights, dtype=like.dtype, device=like.device)[:, None, None]


@dataclass(frozen=True)
class StackedParameters:
    """Any family: each group's matrix is built, all groups' side by side, a block at a time."""

    keys: Sequence[Key]
    scales: tuple[float, ...]
    directions: Directions

    def part(self, first: int, stop: int) -> "StackedParameters":
        """Some of the groups."""
        return replace(self, keys=self.keys[first:stop], scales=self.scales[first:stop])

    def product(self, x: Tensor, held: FlatParameter, inner: int, bias: Tensor | None) -> Tensor:
        height, width = held.shape
        step = rows_of_block(height, width, max(STACK // len(self.keys), width))
        out = x.new_zeros(*x.shape[:2], held.shape[1 - inner])
        if bias is not None:
            out += bias
        for first in range(0, height, step):
            rows = slice(first, min(first + step, height))
            piece = FlatParameter(
                held.values[rows.start * width : rows.stop * width],
                held.start + rows.start * width,
                (rows.stop - rows.start, width),
            )
            if inner:
                out[:, :, rows].baddbmm_(x, self.stack(piece).transpose(1, 2))
            else:
                out.baddbmm_(x[:, :, rows], self.stack(piece))
        return out

    def rows(self, ids: Tensor, held: FlatParameter) -> Tensor:
        chosen = F.embedding(ids, held.values.view(held.shape))
        for g, (key, scale) in enumerate(zip(self.keys, self.scales, strict=True)):
            self.directions.add_rows_(chosen[g], ids[g].contiguous(), held.start, key, scale)
        return chosen

    def stack(self, held: FlatParameter) -> Tensor:
        stacked = held.values.new_empty(len(self.keys), held.values.numel())
        for g, (key, scale) in enumerate(zip(self.keys, self.scales, strict=True)):
            self.directions.perturb_(stacked[g], held.values, held.start, key, scale)
        return stacked.view(-1, *held.shape)
