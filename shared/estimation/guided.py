"""Directions guided by a gradient ĝ, and the estimate from the slopes along them.

*Tilted*: the unit vector u = c·ĝ/‖ĝ‖ + √(1−c²)·n, where n is a key's direction made orthogonal to ĝ
and normalised. It is a sum of two vectors that server and site have, u = a·ĝ + b·z, so that an
estimate is sent as one number for ĝ and one for each key.

*Masked*: ĝ on a random subset of its coordinates that carries about c² of its energy, normalised.

Either is measured at the displacement ε√d·u, as long as that of a plain direction, and the estimate
is (1/(q·c²))·Σ (∂L/∂u)·u: it has the gradient's scale whatever ‖ĝ‖ is. Lengths and products are
summed in a fixed order (``shared/base/deterministic_sums.py``), so that sites and server compute
the same u to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.base.deterministic_sums import dot, norm
from shared.base.flat import FlatModel, Layout
from shared.config.sections import BpSettings
from shared.directions import Directions
from shared.estimation.two_point import Shifts
from shared.optimizers.gradient import add_scaled_
from shared.randomness.philox import words
from shared.randomness.streams import Key, mask_key

WORD = 1 << 32


@dataclass(frozen=True)
class Estimate:
    """guide·ĝ + dense + Σ keys[k]·z(k): the gradient's estimate from the slopes along some keys."""

    guide: float
    keys: NDArray[np.float64]  # (q,) zero for masked directions
    dense: Tensor | None = None  # (size,)

    def on(self, guide: Tensor) -> Tensor:
        """The part (size,) of one number per parameter, for the ĝ of these slopes."""
        return torch.mul(guide, self.guide) if self.dense is None else self.dense


class Guided(Shifts, Protocol):
    """Unit vectors u guided by a gradient ``guide`` (size,), padding zero."""

    def estimate(self, keys: Sequence[Key], slopes: NDArray[np.float64]) -> Estimate:
        """(1/(q·c²))·Σ slopes[k]·u(k)."""


@dataclass(frozen=True)
class Tilted:
    """u = a·ĝ + b·z; costs one direction drawn and three passes over it per key."""

    layout: Layout
    directions: Directions
    cosine: float
    guide: Tensor

    def shift_(self, flat: Tensor, key: Key, scale: float) -> float:
        a, b = self.parts(key)
        add_scaled_(flat, self.guide, scale * a)
        return scale * b

    def estimate(self, keys: Sequence[Key], slopes: NDArray[np.float64]) -> Estimate:
        parts = np.array([self.parts(key) for key in keys]).reshape(-1, 2)  # (q, 2)
        each = slopes / (len(keys) * self.cosine**2)
        return Estimate(float(sum(each * parts[:, 0])), each * parts[:, 1])

    def parts(self, key: Key) -> tuple[float, float]:
        """The numbers a and b of a key; if ĝ is zero, u is the key's own direction."""
        z = torch.zeros_like(self.guide)
        self.directions.add_to_(z, [key], [1.0])
        self.layout.clear_padding_(z)
        length, energy = norm(self.guide), dot(z, z)
        if not length:
            return 0.0, 1 / sqrt(energy)
        along = dot(z, self.guide) / length
        across = sqrt(max(energy - along**2, 0.0))
        b = sqrt(1 - self.cosine**2) / across if across else 0.0
        return (self.cosine - b * along) / length, b


@dataclass(frozen=True)
class Masked:
    """u = ĝ ⊙ m / ‖ĝ ⊙ m‖, where m is 1 at each coordinate with probability c²."""

    layout: Layout
    cosine: float
    guide: Tensor

    def shift_(self, flat: Tensor, key: Key, scale: float) -> float:
        part, length = self._mask(key)
        add_scaled_(flat, part, scale / length if length else 0.0)
        return 0.0

    def estimate(self, keys: Sequence[Key], slopes: NDArray[np.float64]) -> Estimate:
        dense = torch.zeros_like(self.guide)
        for key, slope in zip(keys, slopes, strict=True):
            part, length = self._mask(key)
            if length:
                each = float(slope) / (len(keys) * self.cosine**2 * length)
                add_scaled_(dense, part, each)
        return Estimate(0.0, np.zeros(len(keys)), dense)

    def _mask(self, key: Key) -> tuple[Tensor, float]:
        """ĝ on the coordinates that a key chooses (size,), and its length."""
        limit = min(round(self.cosine**2 * WORD), WORD - 1)
        blocks = range(-(-self.guide.numel() // 4))
        drawn = words(mask_key(key), blocks).reshape(-1)
        mask = torch.from_numpy(drawn[: self.guide.numel()] < limit).to(self.guide.device)
        part = torch.where(mask, self.guide, torch.zeros((), device=self.guide.device))
        return part, norm(part)


def directions_along(
    settings: BpSettings, model: FlatModel, directions: Directions, guide: Tensor
) -> Guided:
    """Guide directions by a gradient (size,) as the setting ``instruct-directions`` names."""
    vector = guide.to(model.flat.device)
    if settings.instruct_directions == "masked":
        return Masked(model.layout, settings.cosine_target, vector)
    return Tilted(model.layout, directions, settings.cosine_target, vector)
