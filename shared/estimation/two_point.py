"""Two-point SPSA estimate (Spall 1992): 2q forward passes for q loss differences."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.estimation.perturber import Perturber
from shared.randomness.streams import Key

Numbers = TypeVar("Numbers", float, NDArray[np.float64])


def two_point(
    loss: Callable[[int], float], perturber: Perturber, keys: Sequence[Key], eps: float
) -> NDArray[np.float32]:
    """Return L(θ+εz) − L(θ−εz) for each key (q,); ``loss`` is handed the key's index."""

    def at(index: int, scale: float) -> float:
        with perturber.at(keys[index], scale):
            return loss(index)

    return np.array([at(k, eps) - at(k, -eps) for k in range(len(keys))], np.float32)


def coefficients(differences: Numbers, eps: float, queries: int) -> Numbers:
    """Each difference / (2·eps·queries): what its direction is multiplied by in the estimate.

    With one query this is the slope along the direction.
    """
    return differences / (2 * eps * queries)


def differences_of(coefficients: Numbers, eps: float, queries: int) -> Numbers:
    """The inverse of ``coefficients``: the differences that would give them."""
    return coefficients * (2 * eps * queries)
