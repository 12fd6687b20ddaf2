"""Two-point SPSA (Spall 1992): loss differences along directions, and along guided ones.

An estimate of q directions costs 2q forward passes. The parameters are the same afterwards, to the
bit.
"""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared.base.flat import FlatModel, Layout
from shared.estimation.perturber import Perturber
from shared.randomness.streams import Key

Loss = Callable[[int], float]  # of a query's number, at the model's current parameters


class Shifts(Protocol):
    """A family of unit vectors u(key) that are not, or not only, directions z(key)."""

    def shift_(self, flat: Tensor, key: Key, scale: float) -> float:
        """Add the dense part of scale * u to ``flat`` (size,); return the scale of z in it."""


def two_point(
    loss: Loss, perturber: Perturber, keys: Sequence[Key], eps: float
) -> NDArray[np.float32]:
    """Return L(θ+εz) − L(θ−εz) for each key (q,)."""

    def at(index: int, scale: float) -> float:
        with perturber.at(keys[index], scale):
            return loss(index)

    return _differences(at, len(keys), eps)


def two_point_along(
    loss: Loss,
    perturber: Perturber,
    model: FlatModel,
    vectors: Shifts,
    keys: Sequence[Key],
    step: float,
) -> NDArray[np.float32]:
    """Return L(θ+step·u) − L(θ−step·u) for each key (q,); needs one copy of the parameters."""
    saved = model.flat.clone()

    def at(index: int, scale: float) -> float:
        rest = vectors.shift_(model.flat, keys[index], scale)
        try:
            if not rest:
                return loss(index)
            with perturber.at(keys[index], rest):
                return loss(index)
        finally:
            model.flat.copy_(saved)

    return _differences(at, len(keys), step)


def radius(eps: float, layout: Layout) -> float:
    """The displacement along a unit vector that is as long as ``eps`` along a vector of signs."""
    return eps * sqrt(layout.parameters)


def _differences(at: Callable[[int, float], float], count: int, step: float) -> NDArray[np.float32]:
    return np.array([at(k, step) - at(k, -step) for k in range(count)], np.float32)
