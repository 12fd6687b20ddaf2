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
from shared.randomness.streams import Key

Slopes = Callable[[Mapping[str, Tensor]], Tensor]  # of each example (n,), along a direction by name


def two_point_each(losses: Sequence[Tensor]) -> NDArray[np.float64]:
    """Return L_i(θ+εz) − L_i(θ−εz) (q, n), of losses (n,) at ``both_sides``' points."""
    rows = torch.stack(list(losses)).numpy()
    differences: NDArray[np.float64] = rows[0::2] - rows[1::2]
    return differences


def forward_each(losses: Sequence[Tensor]) -> NDArray[np.float64]:
    """Return 2·(L_i(θ+εz) − L_i(θ)) (q, n), of losses (n,) at ``one_side``'s points."""
    rows = torch.stack(list(losses)).numpy()
    differences: NDArray[np.float64] = 2 * (rows[1:] - rows[0])
    return differences


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
