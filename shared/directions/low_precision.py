"""Directions over parameters of fewer bits: added in float32, rounded to nearest at the end.

What is so small that it is rounded away is not measured;
``shared/replica/stochastic_rounding.py`` says how much.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.directions import Directions
from shared.randomness.streams import Key

CHUNK = 1 << 16  # elements: what is added to stays in a core's cache


@dataclass(frozen=True)
class LowPrecision:
    """Another family's directions; vectors that are in float32 pass through."""

    inner: Directions

    @property
    def exact(self) -> bool:
        """As the family itself: rounding to nearest is the same everywhere."""
        return self.inner.exact

    @property
    def pointwise(self) -> bool:
        """As the family itself."""
        return self.inner.pointwise

    def add_to_(
        self, flat: Tensor, keys: Sequence[Key], coefficients: Sequence[float], start: int = 0
    ) -> None:
        """Add to ``flat`` (n,) in float32; parameters are rounded stochastically elsewhere."""
        self.inner.add_to_(flat, keys, coefficients, start)

    @torch.no_grad()
    def perturbed_(self, out: Tensor, source: Tensor, start: int, key: Key, scale: float) -> None:
        """Write source + scale * z(key), rounded, into ``out``; both (n,), at address ``start``."""
        for at in range(0, out.numel(), CHUNK):
            work = source[at : at + CHUNK].float()
            self.inner.add_to_(work, [key], [scale], start + at)
            out[at : at + CHUNK] = work

    @torch.no_grad()
    def add_rows_(self, rows: Tensor, ids: Tensor, start: int, key: Key, scale: float) -> None:
        """Add scale * z to ``rows`` (m, width) and round; row i is row ids[i] of the matrix."""
        work = rows.float()
        self.inner.add_rows_(work, ids, start, key, scale)
        rows.copy_(work)


def lower_precision(directions: Directions, dtype: torch.dtype) -> Directions:
    """The directions for parameters of ``dtype``."""
    return directions if dtype is torch.float32 else LowPrecision(directions)
