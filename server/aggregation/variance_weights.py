"""How far estimates are from the gradient, judged by what the sites measured."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared.base.deterministic_sums import norm
from shared.config.rules import weight_of
from shared.config.schema import Config


def ratio(error: float, other: float) -> float:
    """The weight of an estimate whose rival is off by ``error`` and which is itself by ``other``.

    Inverse-error weights: the mean of both that is off least, if their errors are independent.
    """
    total = error + other
    return error / total if total > 0 else 0.5


def tilted_weight(config: Config, gradient: Tensor, slopes: NDArray[np.float64]) -> float:
    """The weight of a backpropagated gradient ĝ against the estimate along directions by it.

    ``bp-weight``, or where that is auto what the slopes D (q,) show. Their mean over c says how
    fast the loss of the queries' data rises along ĝ/‖ĝ‖: a. If ĝ = g + e with an error e across g,
    then ‖e‖² = ‖ĝ‖·(‖ĝ‖ − a). The estimate misses of g what is across ĝ, a·(‖ĝ‖ − a), and spreads
    with its q slopes by (mean(D²)/c⁴ − a²)/q.
    """
    fixed = weight_of(config.bp_weight)
    if fixed is not None:
        return fixed
    cosine, length = config.cosine_target, norm(gradient)
    rise = mean(slopes) / cosine
    sent = length * max(length - rise, 0.0)
    spread = max(mean(slopes**2) / cosine**4 - rise**2, 0.0) / len(slopes)
    return ratio(spread + max(rise * (length - rise), 0.0), sent)


def mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """The mean of some numbers, as a float."""
    return float(np.mean(values))
