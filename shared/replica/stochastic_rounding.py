"""Stochastic rounding to bfloat16: up or down with odds that keep the mean, the same everywhere.

A step smaller than half the distance between two bfloat16 numbers would be lost to rounding to
nearest, and with it most of training. Here it moves a number with the odds of its share of that
distance (Gupta et al. 2015, https://arxiv.org/abs/1502.02551). The odds are drawn by Philox, by the
round and the number's address, so that replicas stay equal to the bit; a number that needs no
rounding stays as it is.
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
TOLERATED = 0.01  # share of parameters that may not notice a perturbation without a warning


def reference(values: NDArray[np.float32], key: Key, start: int) -> NDArray[np.uint16]:
    """The upper halves of ``values`` (n,) once 16 random bits are added to the lower ones.

    The number at address a takes the low (a even) or high half of word a % 8 // 2 of block a // 8.
    This defines the rounding; every kernel equals it.
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
        from shared.directions.kernels import rounding_cpu

        rounding_cpu.round_(out, values, key, start)
    else:
        from shared.directions.kernels import plain_torch

        plain_torch.round_(out, values, key, start)


def step_(
    optimizer: Optimizer, flat: Tensor, gradient: Gradient, learning_rate: float, key: Key
) -> None:
    """Let an optimizer move the parameters ``flat`` (size,), in float32, and round what comes out.

    Where it only adds the gradient, this goes piece by piece: nothing of the model's size is held.
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
    """Add scale * gradient to the parameters ``flat`` (size,), rounded where they are rounded."""
    if flat.dtype is torch.float32:
        gradient.add_to_(flat, scale)
        return
    for start in range(0, flat.numel(), PIECE):
        part = flat[start : start + PIECE]
        work = part.float()
        gradient.add_to_(work, scale, start)
        round_(part, work, key, start)


@dataclass(frozen=True)
class Lost:
    """Which parameters do not notice that ``eps`` is added to them or taken away."""

    share: float  # of all parameters
    tensors: tuple[str, ...]  # of which more than half do not
    needed: float  # an eps that 99 % of all parameters would notice

    @property
    def matters(self) -> bool:
        """Whether someone should be told."""
        return self.share > TOLERATED or bool(self.tensors)


def lost(flat: Tensor, layout: Layout, eps: float) -> Lost:
    """Look which parameters ``flat`` (size,) plus or minus ``eps`` are rounded back."""
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
    return Lost(counts / layout.parameters, tuple(names), needed)
