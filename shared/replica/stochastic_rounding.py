"""Stochastic rounding to bfloat16: up or down at random, so that the mean is kept.

Rounding to nearest loses every step that is smaller than half the distance between two bfloat16
numbers, and with it most of training. Stochastic rounding moves a number with a probability equal
to the step's share of that distance (Gupta et al. 2015, https://arxiv.org/abs/1502.02551). The
random bits come from Philox under the round and the number's address, so replicas stay equal to the
bit. A number that needs no rounding stays as it is.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.base.flat import Layout
from shared.optimizers import Optimizer
from shared.optimizers.gradient import Gradient
from shared.randomness.philox import words
from shared.randomness.streams import Key

PER_BLOCK = 8  # numbers that one block of the generator rounds, 16 bits each
PIECE = 1 << 20  # elements that are rounded at a time: temporaries stay this small
TOLERATED_SHARE = 0.01  # of parameters that a perturbation may fail to change without a warning


def reference(values: NDArray[np.float32], key: Key, start: int) -> NDArray[np.uint16]:
    """Return the upper halves of ``values`` (n,) after random bits are added to the lower halves.

    The number at address a takes the low (a even) or high half of word a % 8 // 2 of block a // 8.
    This defines the rounding; every kernel must equal it.
    """
    addresses = np.arange(start, start + len(values))
    blocks, inverse = np.unique(addresses // PER_BLOCK, return_inverse=True)
    drawn = words(key, blocks)[inverse, addresses % PER_BLOCK // 2]
    odds = drawn >> (16 * (addresses % 2)).astype(np.uint32) & np.uint32(0xFFFF)
    bits = values.view(np.uint32)
    finite = bits & 0x7F800000 != 0x7F800000
    up = np.where(finite, odds, 0).astype(np.uint32)
    nan = ~finite & (bits & 0x7FFFFF != 0)
    return ((bits + up >> 16) | np.where(nan, 0x40, 0)).astype(np.uint16)


def round_(out: Tensor, values: Tensor, key: Key, start: int) -> None:
    """Round ``values`` (n,) float32, which begin at ``start``, into ``out`` (n,) bfloat16."""
    if values.is_cpu:
        from shared.directions.kernels import philox_cpu

        philox_cpu.round_(out, values, key, start)
    else:
        from shared.directions.kernels import plain_torch

        plain_torch.round_(out, values, key, start)


def step_(
    optimizer: Optimizer, flat: Tensor, gradient: Gradient, learning_rate: float, key: Key
) -> None:
    """Take an optimizer's step of the parameters ``flat`` (size,) in float32 and round the result.

    If the optimizer only adds the gradient, memory for one piece is enough.
    """
    if flat.dtype is torch.float32:
        optimizer.step_(flat, gradient, learning_rate)
    elif optimizer.additive:
        add_(flat, gradient, -learning_rate, key)
    else:
        work = flat.float()
        optimizer.step_(work, gradient, learning_rate)
        round_(flat, work, key, 0)


def add_(flat: Tensor, gradient: Gradient, scale: float, key: Key) -> None:
    """Add scale * gradient to ``flat`` (size,); the sum is rounded if ``flat`` is in bfloat16."""
    if flat.dtype is torch.float32:
        gradient.add_to_(flat, scale)
        return
    for start in range(0, flat.numel(), PIECE):
        part = flat[start : start + PIECE]
        work = part.float()
        gradient.add_to_(work, scale, start)
        round_(part, work, key, start)


@dataclass(frozen=True)
class Unperturbed:
    """The parameters that stay the same number when ``eps`` is added or subtracted."""

    share: float  # of all parameters
    tensors: tuple[str, ...]  # names of those of which more than half stay
    needed: float  # an eps that would change 99 % of all parameters

    @property
    def matters(self) -> bool:
        """Whether a warning is due."""
        return self.share > TOLERATED_SHARE or bool(self.tensors)


def count_unperturbed(flat: Tensor, layout: Layout, eps: float) -> Unperturbed:
    """Count the parameters in ``flat`` (size,) that rounding keeps where they are."""
    counts, names, sizes = 0, [], torch.zeros(512, dtype=torch.int64)
    for span in layout.tensors:
        values = flat[span.start : span.stop]
        stays = (values + eps == values) | (values - eps == values)
        counts += (count := int(stays.sum()))
        if 2 * count > span.size:
            names.append(span.name)
        exponents = torch.where(values == 0, 0, torch.frexp(values.float())[1].long() + 256)
        sizes += torch.bincount(exponents.clamp(0, 511).cpu(), minlength=512)
    ninety_nine = int((sizes.cumsum(0) < 0.99 * layout.parameters).sum())
    needed = 2.0 ** (ninety_nine - 256 - 1) * torch.finfo(flat.dtype).eps
    return Unperturbed(counts / layout.parameters, tuple(names), needed)
