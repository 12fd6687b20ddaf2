"""Sums in a fixed order, which have the same bits at any number of threads and on any device.

The product of two float32 numbers is exact in float64. A sum is taken by pairwise halving: the
second half of an array is added to the first, element by element, until one number is left. Every
addition is an element-wise operation, which IEEE 754 rounds alike everywhere.
"""

from math import sqrt

import torch
from torch import Tensor

PIECE = 1 << 20  # elements of a temporary: a power of two


def dot(a: Tensor, b: Tensor) -> float:
    """Return the dot product of two float32 vectors (n,), summed in float64."""
    sums = [
        _sum_halves(a[start : start + PIECE].double() * b[start : start + PIECE].double())
        for start in range(0, a.numel(), PIECE)
    ]
    return float(_sum_halves(torch.stack(sums))) if sums else 0.0


def norm(a: Tensor) -> float:
    """Return the Euclidean norm of a float32 vector (n,)."""
    return sqrt(dot(a, a))


def _sum_halves(values: Tensor) -> Tensor:
    """Return the sum () of float64 ``values`` (n,)."""
    while values.numel() > 1:
        half = (values.numel() + 1) // 2
        first, second = values[:half].clone(), values[half:]
        first[: second.numel()] += second
        values = first
    return values[0]
