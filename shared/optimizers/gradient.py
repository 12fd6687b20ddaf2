"""One verb carries the system: a gradient adds itself, scaled, to a vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.directions import Directions
from shared.randomness.streams import Key

CHUNK = 1 << 20  # elements: temporaries of element-wise work stay this small

Numbers = TypeVar("Numbers", float, NDArray[np.float64])


def coefficients_of(differences: Numbers, eps: float, queries: int) -> Numbers:
    """Return the coefficients of directions in the two-point estimate (SPSA, Spall 1992).

    A difference is L(θ+εz) − L(θ−εz); its direction's coefficient is difference / (2·ε·q), so that
    the estimate (1/q)·Σ (difference / 2ε)·z is the sum of coefficients times directions.
    """
    return differences / (2 * eps * queries)


def differences_of(coefficients: Numbers, eps: float, queries: int) -> Numbers:
    """Return the differences whose coefficients these are: the inverse of ``coefficients_of``."""
    return coefficients * (2 * eps * queries)


class Gradient(Protocol):
    """A direction of ascent in parameter space."""

    def add_to_(self, flat: Tensor, scale: float, start: int = 0) -> None:
        """Add scale * gradient to ``flat`` (n,), which begins at address ``start``, in place."""


@dataclass(frozen=True)
class ZerothOrderGradient:
    """The sum of coefficients[k] * z(keys[k]): a few numbers, whatever the model's size."""

    directions: Directions
    keys: Sequence[Key]
    coefficients: Sequence[float]  # projected gradients, already divided by the query budget

    def add_to_(self, flat: Tensor, scale: float, start: int = 0) -> None:
        """Add scale * gradient to ``flat`` (n,) in place, direction by direction."""
        scaled = [scale * c for c in self.coefficients]
        self.directions.add_to_(flat, self.keys, scaled, start)


@dataclass(frozen=True)
class DenseGradient:
    """One number per parameter, as backpropagation gives it."""

    vector: Tensor  # (size,), padding zero

    def add_to_(self, flat: Tensor, scale: float, start: int = 0) -> None:
        """Add scale * gradient to ``flat`` (n,); product and sum are rounded apart."""
        add_scaled_(flat, self.vector[start : start + flat.numel()], scale)


@dataclass(frozen=True)
class SumGradient:
    """weight * first + second: what was backpropagated, and what was measured."""

    first: Gradient
    weight: float
    second: Gradient

    def add_to_(self, flat: Tensor, scale: float, start: int = 0) -> None:
        """Add scale * gradient to ``flat`` (n,), the first part first."""
        self.first.add_to_(flat, scale * self.weight, start)
        self.second.add_to_(flat, scale, start)


def add_scaled_(target: Tensor, vector: Tensor, scale: float) -> None:
    """Add scale * vector to ``target`` without fused multiply-add, so that devices agree."""
    for start in range(0, target.numel(), CHUNK):
        part = slice(start, start + CHUNK)
        target[part] += torch.mul(vector[part], scale)
