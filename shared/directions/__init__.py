"""Families of random directions: each number is a pure function of a key and an address."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from shared.base.flat import Matrix
from shared.base.registry import Registry
from shared.randomness.streams import Key


class Directions(Protocol):
    """A family of directions z over the flat address space of a layout.

    ``start`` is the flat address of the first element of the tensor that is passed in. So any slice
    of the parameters can be treated alone, with the same result as within the whole. Padding that a
    slice covers is written too; ``Layout.clear_padding_`` resets it.
    """

    @property
    def exact(self) -> bool:
        """Whether its bits are the same on every device, at any number of threads."""

    @property
    def pointwise(self) -> bool:
        """Whether an element depends on its address alone, not on the tensor around it."""

    def add_to_(
        self, flat: Tensor, keys: Sequence[Key], coefficients: Sequence[float], start: int = 0
    ) -> None:
        """Add sum of coefficients[k] * z(keys[k]) to ``flat`` (n,) in place, in key order.

        Each coefficient is rounded to float32 once; each product and each sum is rounded alone.
        """

    def perturb_(self, out: Tensor, source: Tensor, start: int, key: Key, scale: float) -> None:
        """Write source + scale * z(key) into ``out``; both (n,), at address ``start``."""

    def add_rows_(self, rows: Tensor, ids: Tensor, start: int, key: Key, scale: float) -> None:
        """Add scale * z to ``rows`` (m, width): row i is row ids[i] of the matrix at ``start``."""


@runtime_checkable
class Multiplies(Protocol):
    """A family with its own product with a perturbed matrix, faster than block by block."""

    def product(
        self,
        x: Tensor,
        matrix: Matrix,
        bias: Tensor | None,
        key: Key,
        scale: float,
        scratch: Tensor,
    ) -> Tensor | None:
        """Return x (m, k) times the matrix plus scale * z(key), plus bias (n,), as (m, n).

        None if the family has no product for this processor or shape. ``scratch`` is overwritten.
        """


@runtime_checkable
class HasBfloat16(Protocol):
    """A family with kernels for bfloat16, which round sums in float32 to nearest."""

    def has_bfloat16(self, device: str) -> bool:
        """Whether ``perturb_`` and ``add_rows_`` take bfloat16 on a kind of device."""


class KeySlot(Protocol):
    """A key and a scale in memory of a device."""

    def active(self, key: Key, scale: float) -> AbstractContextManager[None]:
        """Let all kernels that perturb with one key read this one meanwhile, from this memory."""


@runtime_checkable
class Capturable(Protocol):
    """A family whose kernels can read a key and a scale from memory of the device."""

    def slot(self, device: torch.device) -> KeySlot | None:
        """Return new memory for a key and a scale; None if there are no such kernels for it."""


# A family is called with the layout; its other parameters are settings of the same names.
DIRECTIONS: Registry[Callable[..., Directions]] = Registry("directions", "shared.directions")
