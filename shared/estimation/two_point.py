"""Two-point SPSA (Spall 1992): loss differences along directions, and along guided ones.

An estimate of q directions costs 2q forward passes. The parameters are the same afterwards, to the
bit.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from math import sqrt
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared.base.flat import FlatModel, Layout
from shared.estimation.perturber import Perturber
from shared.randomness.streams import Key

T = TypeVar("T")
Loss = Callable[[int], float]  # of a query's number, at the model's current parameters


class Point(NamedTuple):
    """Where a loss is evaluated: at θ + scale * z(key), on the batch of a query."""

    query: int
    key: Key
    scale: float


class Shifts(Protocol):
    """A family of unit vectors u(key) that are not, or not only, directions z(key)."""

    def shift_(self, flat: Tensor, key: Key, scale: float) -> float:
        """Add the dense part of scale * u to ``flat`` (size,); return the scale of z in it."""


def both_sides(keys: Sequence[Key], eps: float) -> list[Point]:
    """The points of two-point differences (2q,): each key at +eps, then at −eps."""
    return [Point(k, key, scale) for k, key in enumerate(keys) for scale in (eps, -eps)]


def evaluate_at(point: Point, loss: Callable[[int], T], perturber: Perturber) -> T:
    """What ``loss`` gives for the point's query while the model is at the point."""
    with perturber.at(point.key, point.scale) if point.scale else nullcontext():
        return loss(point.query)


def two_point(
    loss: Loss, perturber: Perturber, keys: Sequence[Key], eps: float
) -> NDArray[np.float32]:
    """Return L(θ+εz) − L(θ−εz) for each key (q,)."""
    return differences_of([evaluate_at(p, loss, perturber) for p in both_sides(keys, eps)])


def losses_along(
    loss: Loss, perturber: Perturber, model: FlatModel, vectors: Shifts, points: Sequence[Point]
) -> list[float]:
    """Return L(θ + scale·u(key)) of each point; needs one copy of the parameters."""
    saved = model.flat.clone()

    def at(point: Point) -> float:
        rest = vectors.shift_(model.flat, point.key, point.scale)
        try:
            return evaluate_at(point._replace(scale=rest), loss, perturber)
        finally:
            model.flat.copy_(saved)

    return [at(point) for point in points]


def differences_of(losses: Sequence[float]) -> NDArray[np.float32]:
    """Differences (q,) as they are sent, of losses at the points of ``both_sides`` (2q,)."""
    pairs = np.array(losses, np.float64).reshape(-1, 2)
    differences: NDArray[np.float32] = (pairs[:, 0] - pairs[:, 1]).astype(np.float32)
    return differences


def radius(eps: float, layout: Layout) -> float:
    """The displacement along a unit vector that is as long as ``eps`` along a vector of signs."""
    return eps * sqrt(layout.parameters)
