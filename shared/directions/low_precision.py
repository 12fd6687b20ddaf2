"""Directions over parameters in bfloat16: the sum is taken in float32 and rounded to nearest.

A perturbation that is much smaller than a parameter is lost by this rounding, so it is not
measured; ``count_unperturbed`` in ``shared/replica/stochastic_rounding.py`` counts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.directions import Capturable, Directions, HasBfloat16, KeySlot
from shared.randomness.streams import Key

PIECE = 1 << 16  # elements of a float32 copy: it stays in a core's cache
CARD_PIECE = 1 << 22  # on a card, where each piece starts some kernels: as large as its scratch


@dataclass(frozen=True)
class LowPrecision:
    """The directions of another family, for parameters that are not in float32."""

    inner: Directions

    @property
    def exact(self) -> bool:
        """As in the other family: rounding to nearest is the same everywhere."""
        return self.inner.exact

    @property
    def pointwise(self) -> bool:
        """As in the other family."""
        return self.inner.pointwise

    def add_to_(
        self, flat: Tensor, keys: Sequence[Key], coefficients: Sequence[float], start: int = 0
    ) -> None:
        """Add to ``flat`` (n,), which is in float32; a step of the parameters is rounded later."""
        self.inner.add_to_(flat, keys, coefficients, start)

    @torch.no_grad()
    def perturb_(self, out: Tensor, source: Tensor, start: int, key: Key, scale: float) -> None:
        """Write source + scale * z(key), rounded, into ``out``; both (n,), at address ``start``."""
        if self._rounds(out):
            self.inner.perturb_(out, source, start, key, scale)
            return
        piece = PIECE if out.is_cpu else CARD_PIECE
        for at in range(0, out.numel(), piece):
            work = source[at : at + piece].float()
            self.inner.add_to_(work, [key], [scale], start + at)
            out[at : at + piece] = work

    @torch.no_grad()
    def add_rows_(self, rows: Tensor, ids: Tensor, start: int, key: Key, scale: float) -> None:
        """Add scale * z to ``rows`` (m, width) and round; row i is row ids[i] of the matrix."""
        if self._rounds(rows):
            self.inner.add_rows_(rows, ids, start, key, scale)
            return
        work = rows.float()
        self.inner.add_rows_(work, ids, start, key, scale)
        rows.copy_(work)

    def slot(self, device: torch.device) -> KeySlot | None:
        """As the other family's, if its kernels take bfloat16 as it is."""
        is_direct = isinstance(self.inner, HasBfloat16) and self.inner.has_bfloat16(device.type)
        return self.inner.slot(device) if is_direct and isinstance(self.inner, Capturable) else None

    def _rounds(self, out: Tensor) -> bool:
        """Whether the other family writes into ``out`` as it is."""
        return isinstance(self.inner, HasBfloat16) and self.inner.has_bfloat16(out.device.type)


def lower_precision(directions: Directions, dtype: torch.dtype) -> Directions:
    """Return a family's directions for parameters of ``dtype``.

    Args:
        directions: a family that adds to float32 only.
        dtype: float32, for which the family is returned as it is, or bfloat16.
    """
    return directions if dtype is torch.float32 else LowPrecision(directions)
