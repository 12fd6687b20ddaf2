"""Forward differences: one baseline and q one-sided evaluations, centred to take the bend out.

The second-order part of L(θ+εz) − L(θ) is (ε²/2)·zᵀHz. Over directions of signs it is nearly the
same, (ε²/2)·tr H, so the mean of the q numbers is taken from each of them; the mean also has the
rounding of the baseline, which all of them share. What is lost with it is the estimate along one
combination of the q directions; the factor q / (q − 1) makes up for it, so that the estimate stays
unbiased (the leave-one-out baseline of Kool et al. 2019, https://openreview.net/forum?id=r1lgTGL5DE).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.config.schema import Config
from shared.estimation.perturber import Perturber
from shared.estimation.two_point import Point, evaluate_at
from shared.modes.estimators import FORWARD, estimator_of
from shared.randomness.streams import Key

FEWEST = 4  # queries from which on numbers are centred: below, too much of them would be lost


def one_side(keys: Sequence[Key], eps: float) -> list[Point]:
    """The points of forward differences (q + 1,): θ itself, then each key at +eps."""
    return [Point(0, keys[0], 0.0), *(Point(k, key, eps) for k, key in enumerate(keys))]


def forward_differences(
    loss: Callable[[], float], perturber: Perturber, keys: Sequence[Key], eps: float
) -> tuple[NDArray[np.float32], float]:
    """Return 2·(L(θ+εz) − L(θ)) for each key (q,), and L(θ); costs q + 1 evaluations.

    Half of a number is a one-sided difference, so number / 2ε is the slope, as with two points.
    """
    points = one_side(keys, eps)
    baseline, *losses = (evaluate_at(point, lambda _: loss(), perturber) for point in points)
    return numbers_of(np.array(losses), baseline), baseline


def numbers_of(losses: NDArray[np.float64], baseline: float) -> NDArray[np.float32]:
    """Numbers (q,) as they are sent, of losses (q,) at θ+εz and their baseline L(θ)."""
    numbers: NDArray[np.float32] = (2 * (losses - baseline)).astype(np.float32)
    return numbers


def centre(differences: NDArray[np.float64], queries: int) -> NDArray[np.float64]:
    """Take from each number (K*q,) the mean of its step's, times q / (q − 1); unless q < 4."""
    if queries < FEWEST:
        return differences
    steps = differences.reshape(-1, queries)
    rest: NDArray[np.float64] = steps - steps.mean(1, keepdims=True)
    return rest.reshape(-1) * (queries / (queries - 1))


def without_bend(config: Config, differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers (K*q,) without what curvature adds to all of them; two-point ones have none of it.

    With ``centre-differences = false`` they stay as they were measured, as in published methods.
    Server and sites call it before a step is taken, so an entry has numbers that need no more.
    """
    if estimator_of(config) != FORWARD or not config.zo.centre_differences:
        return differences
    return centre(differences, config.zo.queries)
