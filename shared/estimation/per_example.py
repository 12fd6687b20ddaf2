"""The differences of each example along q directions, as clipping one by one needs them.

The evaluations are those of the mean: a forward pass gives the loss of every example of its batch
(DPZero, Zhang et al. 2024, https://arxiv.org/abs/2310.09639, does so for one direction).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.base.flat import FlatModel
from shared.directions import Directions
from shared.estimation.perturber import Perturber
from shared.randomness.streams import Key

Losses = Callable[[], Tensor]  # of each example (n,) float64, at the model's current parameters
Slopes = Callable[[Mapping[str, Tensor]], Tensor]  # of each example (n,), along a direction by name


def two_point_each(
    losses: Losses, perturber: Perturber, keys: Sequence[Key], eps: float
) -> NDArray[np.float64]:
    """Return L_i(θ+εz) − L_i(θ−εz) for each key and example (q, n); 2q evaluations."""
    rows = []
    for key in keys:
        with perturber.at(key, eps):
            above = losses()
        with perturber.at(key, -eps):
            below = losses()
        rows.append((above - below).numpy())
    return np.array(rows, np.float64)


def forward_each(
    losses: Losses, perturber: Perturber, keys: Sequence[Key], eps: float
) -> NDArray[np.float64]:
    """Return 2·(L_i(θ+εz) − L_i(θ)) for each key and example (q, n); q + 1 evaluations."""
    baseline, rows = losses(), []
    for key in keys:
        with perturber.at(key, eps):
            rows.append(2 * (losses() - baseline).numpy())
    return np.array(rows, np.float64)


def exact_each(
    slopes: Slopes, model: FlatModel, directions: Directions, keys: Sequence[Key], eps: float
) -> NDArray[np.float64]:
    """Return 2·ε·zᵀg_i for each key and example (q, n), from gradients in closed form."""
    rows = []
    for key in keys:
        z = torch.zeros_like(model.flat, dtype=torch.float32)
        directions.add_to_(z, [key], [1.0])
        rows.append(2 * eps * slopes(model.layout.views(z)).cpu().numpy())
    return np.array(rows, np.float64)
