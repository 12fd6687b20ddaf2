"""Sums whose order is fixed, so that they have the same bits at any thread count, on any device.

Products of two float32 numbers are exact in float64. Sums are halved: the second half of an array
is added to the first, element by element, until one number is left; each addition is an operation
of its own on elements, which IEEE 754 rounds alike everywhere.
"""

from math import sqrt

import torch
from torch import Tensor

CHUNK = 1 << 20  # elements: a power of two; temporaries stay this small


def dot(a: Tensor, b: Tensor) -> float:
    """The dot product of two float32 vectors (n,), summed in float64 in a fixed order."""
    sums = [
        _halved(a[start : start + CHUNK].double() * b[start : start + CHUNK].double())
        for start in range(0, a.numel(), CHUNK)
    ]
    return float(_halved(torch.stack(sums))) if sums else 0.0


def norm(a: Tensor) -> float:
    """The Euclidean length of a float32 vector (n,)."""
    return sqrt(dot(a, a))


def _halved(values: Tensor) -> Tensor:
    """The sum () of float64 ``values`` (n,)."""
    while values.numel() > 1:
        half = (values.numel() + 1) // 2
        head, tail = values[:half].clone(), values[half:]
        head[: tail.numel()] += tail
        values = head
    return values[0]
