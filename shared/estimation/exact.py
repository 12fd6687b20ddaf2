"""Exact slopes along directions, where the gradient by few parameters is known in closed form."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.directions import Directions
from shared.randomness.streams import Key


def exact_differences(
    directions: Directions, keys: Sequence[Key], gradient: Tensor, eps: float
) -> NDArray[np.float32]:
    """What two-point differences (q,) would be if the loss were linear: 2·ε·zᵀg for each key.

    An entry, and every replica, treats them as measured differences. Nothing is perturbed, so
    ``eps`` cancels in the estimate. Costs no forward pass beside that of the gradient.

    Args:
        directions: the family of z.
        keys: of the directions (q,).
        gradient: of the mean loss (size,), padding zero.
        eps: the smoothing radius of the run.
    """
    vector = gradient.float()
    slopes = [_slope(directions, key, vector) for key in keys]
    return (2 * eps * np.array(slopes, np.float64)).astype(np.float32)


def _slope(directions: Directions, key: Key, gradient: Tensor) -> float:
    z = torch.zeros_like(gradient)
    directions.add_to_(z, [key], [1.0])
    return float(z.double() @ gradient.double())
