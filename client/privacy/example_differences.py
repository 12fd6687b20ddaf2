"""The differences of single examples along a run's directions, by the run's own estimator."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared.config.schema import Config
from shared.estimation.forward_differences import one_side
from shared.estimation.per_example import exact_each, forward_each, two_point_each
from shared.estimation.two_point import both_sides, evaluate_at
from shared.modes.estimators import EXACT, FORWARD, estimator_of
from shared.randomness.streams import Key
from shared.training.oracle import Oracle


def example_differences(
    oracle: Oracle, config: Config, batch: Tensor, keys: Sequence[Key]
) -> NDArray[np.float64]:
    """The differences (q, n) of each example of a batch (n, T) along the keys' directions.

    Costs the forward passes of a mean over the batch.
    """
    eps, estimator, replica = config.zo.eps, estimator_of(config), oracle.replica
    if estimator == EXACT:
        slopes = oracle.linear_slopes(batch)
        return exact_each(slopes, replica.model, replica.directions, keys, eps)
    is_forward = estimator == FORWARD
    points = (one_side if is_forward else both_sides)(keys, eps)

    def measure(own: Oracle, numbers: range) -> list[Tensor]:
        at = own.perturber
        return [evaluate_at(points[n], lambda _: own.losses(batch), at) for n in numbers]

    losses = oracle.share_out(len(points), measure, lambda: [batch])
    return (forward_each if is_forward else two_point_each)(losses)


def root_mean_square_slopes(differences: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    """The root mean square slope (n,) of each example: what ``privacy-clip`` bounds."""
    slopes: NDArray[np.float64] = np.sqrt(np.mean((differences / (2 * eps)) ** 2, axis=0))
    return slopes
