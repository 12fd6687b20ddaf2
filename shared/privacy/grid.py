"""Numbers of one unit are clipped together and rounded toward zero, to integers on a public grid.

The clip is 2²⁰ grid steps. Rounding toward zero never makes a vector longer, so that one unit adds
at most 2²⁰ steps of Euclidean norm to a sum, exactly. ``SLACK`` steps more are counted for the
rounding of losses in float32: the last bits of one example's loss may depend on which others are in
its batch (``check_rounding``).
"""

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ConfigError
from shared.config.schema import Config
from shared.modes.estimators import EXACT, estimator_of

CLIP_STEPS = 1 << 20
SLACK = CLIP_STEPS >> 6  # steps by which rounding may move a sum
SENSITIVITY = CLIP_STEPS + SLACK
ROUNDING = 3e-7  # of a loss of a few nats in float32, measured over shapes of a batch


def to_grid(numbers: NDArray[np.float64], clip: float) -> NDArray[np.int64]:
    """Clip the numbers (q, n) of n units to a norm of ``clip`` each; return steps (q, n).

    A unit whose numbers are not finite counts as one whose numbers are zero.

    Raises:
        ConfigError: the clip is not a positive finite number.
    """
    if not 0 < clip < np.inf:
        raise ConfigError(f"privacy-clip: a number above 0 expected, got {clip!r}")
    finite = np.where(np.isfinite(numbers).all(0), numbers, 0.0)
    peaks = np.maximum(np.abs(finite).max(0, initial=0.0), clip)
    parts = finite / peaks  # at most 1: squares stay finite
    with np.errstate(over="ignore", divide="ignore"):  # the other of the two is finite
        factors = np.minimum(peaks / clip, 1 / np.sqrt((parts**2).sum(0)))
    steps = np.trunc(parts * factors * CLIP_STEPS).astype(np.int64)
    return _toward_zero_until_inside(steps)


def _toward_zero_until_inside(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Undo what rounding of the norm may have added: integers decide whether a unit is inside."""
    while (outside := (steps * steps).sum(0) > CLIP_STEPS**2).any():
        steps[:, outside] -= np.sign(steps[:, outside])
    return steps


def noise_steps(noise: float) -> int:
    """The σ of the noise in grid steps, for a standard deviation of ``noise`` sensitivities."""
    return int(np.ceil(noise * SENSITIVITY))


def from_grid(steps: NDArray[np.int64], clip: float, batch: int) -> NDArray[np.float32]:
    """The mean difference (q,) that is sent, of the steps (q,) of a batch's noisy sum.

    A function of integers alone, so it reveals what they do.
    """
    numbers: NDArray[np.float32] = (steps * (clip / CLIP_STEPS / batch)).astype(np.float32)
    return numbers


def check_rounding(config: Config) -> None:
    """Refuse a clip that the rounding of a batch's losses could exceed by more than ``SLACK``.

    Raises:
        ConfigError: names the clip that is large enough.
    """
    if estimator_of(config) == EXACT:
        return  # slopes are rounded by parts of themselves, not of a loss
    queries, eps = config.zo.queries, config.zo.eps
    clip = config.privacy.clip_of_differences(eps, queries)
    moved = largest_batch(config.zo.batch_size) * ROUNDING * sqrt(queries)
    if moved > clip * SLACK / CLIP_STEPS:
        needed = config.privacy.clip * moved / (clip * SLACK / CLIP_STEPS)
        raise ConfigError(
            f"privacy-clip {config.privacy.clip:g} with eps {eps:g}: losses are rounded too "
            f"coarsely for it; at least {needed:.2g} expected, or a larger eps"
        )


def largest_batch(batch: int) -> int:
    """Units that a Poisson batch of ``batch`` on average has at most, all but never more."""
    return 2 * batch + 16
