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

    def draw_all(self, keys: Sequence[Key], device: torch.device) -> Tensor | None:
        """The signs of all factors, or None if each tensor is to draw its own."""

    def factors(
        self,
        keys: Sequence[Key],
        start: int,
        device: torch.device,
        drawn: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The factors a (K, r, m) and b (K, r, n) of the matrix (m, n) at ``start``."""

    def signs(
        self,
        keys: Sequence[Key],
        start: int,
        device: torch.device,
        drawn: Tensor | None = None,
    ) -> Tensor:
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
    directions: Directions, keys: Sequence[Key], scales: Sequence[float], device: torch.device
) -> BatchedParameters:
    """Make the parameters θ + scales[p] * z(keys[p]) of each point p, on a device."""
    if isinstance(directions, Factored):
        return FactoredParameters.of(list(keys), scales, directions, device)
    return StackedParameters(list(keys), tuple(scales), directions)


@dataclass(frozen=True)
class FactoredParameters:
    """Low-rank directions: one product with θ for all points, and a thin one for each.

    y = x·Wᵀ + s·(x·b)·aᵀ / √r, so a query costs little more than its share of a large batch.
    """

    keys: Sequence[Key]
    scales: Tensor  # (P,) float32
    weights: Tensor  # (P, 1, 1) float32: scales over the root of the rank, rounded once
    directions: Factored
    drawn: Tensor | None = None  # (distinct keys, n): all signs, if they are drawn already

    @classmethod
    def of(
        cls,
        keys: Sequence[Key],
        scales: Sequence[float],
        directions: Factored,
        device: torch.device,
    ) -> "FactoredParameters":
        """Put scales on the device, and all signs if it draws them at once."""
        numbers = np.array(scales)
        both = np.stack([numbers, numbers / sqrt(directions.rank)]).astype(np.float32)
        own, weights = torch.from_numpy(both).to(device)
        parameters = cls(keys, own, weights[:, None, None], directions)
        drawn = directions.draw_all(keys[: parameters._half()], device)
        return replace(parameters, drawn=drawn)

    def part(self, first: int, stop: int) -> "FactoredParameters":
        """The parameters at points ``first`` to below ``stop``."""
        chosen = slice(first, stop)
        return replace(
            self,
            keys=self.keys[chosen],
            scales=self.scales[chosen],
            weights=self.weights[chosen],
            drawn=None,
        )

    def product(
        self, x: Tensor, parameter: FlatParameter, inner: int, bias: Tensor | None
    ) -> Tensor:
        weight = parameter.values.view(parameter.shape)
        plain = x.reshape(-1, x.shape[2]) @ (weight.t() if inner else weight)
        out = plain.view(*x.shape[:2], -1)
        a, b = self._factors(parameter, x.device)
        weights = self.weights.to(x.dtype)
        within, across = (b, a * weights) if inner else (a, b * weights)
        thin = torch.bmm(x, within.transpose(1, 2))  # (P, R, r)
        if bias is not None:  # one more column, so that ``out`` is written once
            thin, across = F.pad(thin, (0, 1), value=1.0), torch.cat([across, bias], 1)
        return out.baddbmm_(thin, across)

    def rows(self, ids: Tensor, parameter: FlatParameter) -> Tensor:
        chosen = F.embedding(ids, parameter.values.view(parameter.shape))
        a, b = self._factors(parameter, ids.device)
        named = a.gather(2, ids[:, None].expand(-1, a.shape[1], -1))  # (P, r, N)
        return chosen.baddbmm_(named.transpose(1, 2), b * self.weights.to(chosen.dtype))

    def stack(self, parameter: FlatParameter) -> Tensor:
        half = self._half()
        device = parameter.values.device
        z = self.directions.signs(self.keys[:half], parameter.start, device, self.drawn)
        whole = z if half == len(self.keys) else torch.cat([z, z])
        moved = torch.addcmul(parameter.values, whole, self.scales[:, None])
        return moved.view(-1, *parameter.shape)

    def _factors(self, parameter: FlatParameter, device: torch.device) -> tuple[Tensor, Tensor]:
        half = self._half()
        a, b = self.directions.factors(self.keys[:half], parameter.start, device, self.drawn)
        return (a, b) if half == len(self.keys) else (torch.cat([a, a]), torch.cat([b, b]))

    def _half(self) -> int:
        """The number of keys to draw: each once, if both signs of all are here."""
        half = len(self.keys) // 2
        return half if half and self.keys[:half] == self.keys[half:] else len(self.keys)


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
