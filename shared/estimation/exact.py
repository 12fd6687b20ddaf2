"""Exact slopes along directions: products of z and a gradient, and a gradient by backpropagation.

They are the directional derivatives that differences tend to as ε → 0 (the oracle of Nesterov and
Spokoiny 2017, "Random gradient-free minimization of convex functions", section 2), from one
backward pass for all directions. Forward mode would take a pass for each (Baydin et al. 2022,
https://arxiv.org/abs/2202.08587).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.base.errors import DataError
from shared.base.flat import FlatModel
from shared.directions import Directions
from shared.randomness.streams import Key

PART = 1 << 20  # addresses at a time: 20 bytes each are in use beside the gradient


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
    slopes = torch.zeros(len(keys), dtype=torch.float64, device=gradient.device)
    for start in range(0, len(gradient), PART):
        part = gradient[start : start + PART].float().double()
        z = torch.zeros(len(part), device=part.device)
        wide = torch.empty_like(part)
        for number, key in enumerate(keys):
            directions.add_to_(z.zero_(), [key], [1.0], start)
            slopes[number] += wide.copy_(z) @ part
    return (2 * eps * slopes).cpu().numpy().astype(np.float32)


def gradient_of(model: FlatModel, loss: Tensor) -> Tensor:
    """The gradient (size,) of a loss by the model's trained parameters; float32, padding zero.

    A parameter that the loss does not depend on has the gradient 0.

    Args:
        model: whose parameters were used with gradients enabled.
        loss: a scalar.

    Raises:
        DataError: the loss knows no gradient.
    """
    if not loss.requires_grad:
        raise DataError(
            "a loss with a gradient expected for backpropagation, but it was detached, or computed "
            "without gradients: use estimator forward or two-point, or return the loss itself"
        )
    named = dict(model.module.named_parameters())
    chosen = {span.name: named[span.name] for span in model.layout.tensors}
    gradients = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
    parts = {
        name: torch.zeros_like(own) if part is None else part
        for (name, own), part in zip(chosen.items(), gradients, strict=True)
    }
    return model.gather(parts)
