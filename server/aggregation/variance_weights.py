"""Errors of two estimates of one gradient, and the weights that combine them best.

Sites that sent gradients and sites that only measured make two estimates of one gradient. They are
combined with weights that are inverse to their squared errors, which are estimated from the replies
themselves.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared.base.deterministic_sums import norm
from shared.config.sections import BpSettings, weight_of


def inverse_variance_weight(error: float, other: float) -> float:
    """The weight of the second of two independent estimates: error / (error + other).

    The weighted mean of both then has the least squared error.

    Args:
        error: squared error of the first estimate.
        other: squared error of the second estimate, whose weight is returned.
    """
    total = error + other
    return error / total if total > 0 else 0.5


def differences_error(slopes: NDArray[np.float64], parameters: int, directions: int) -> float:
    """Squared error of an estimate from slopes along random directions: (d/q)·‖g‖².

    The mean of the squared ``slopes`` estimates ‖g‖².
    """
    return parameters / directions * float(np.mean(slopes**2))


def gradients_error(energies: Sequence[float], mean_energy: float) -> float:
    """Squared error of the mean of gradients, from how far they spread about it.

    ``energies`` (n,) are the squared lengths of the gradients, ``mean_energy`` is that of their
    mean. One gradient alone has no spread: its error is taken to be as large as itself.
    """
    count = len(energies)
    if count < 2:
        return mean_energy
    return max(sum(energies) / count - mean_energy, 0.0) / (count - 1)


def gradient_weight(settings: BpSettings, gradient: Tensor, slopes: NDArray[np.float64]) -> float:
    """The weight of a backpropagated gradient ĝ against the estimate along directions by it.

    It is ``bp-weight``; if that is auto, it follows from the slopes D (q,). Their mean over c
    estimates how fast the loss of the queries' data rises along ĝ/‖ĝ‖: a. If ĝ = g + e with an
    error e orthogonal to g, then ‖e‖² = ‖ĝ‖·(‖ĝ‖ − a). The estimate lacks the part of g that is
    orthogonal to ĝ, a·(‖ĝ‖ − a), and its q slopes add a variance of (mean(D²)/c⁴ − a²)/q.
    """
    fixed = weight_of(settings.weight)
    if fixed is not None:
        return fixed
    cosine, length = settings.cosine_target, norm(gradient)
    rise = float(np.mean(slopes)) / cosine
    sent = length * max(length - rise, 0.0)
    spread = max(float(np.mean(slopes**2)) / cosine**4 - rise**2, 0.0) / len(slopes)
    return inverse_variance_weight(spread + max(rise * (length - rise), 0.0), sent)
