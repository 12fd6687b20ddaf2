"""A flat vector travels without its padding, and comes back finite or not at all."""

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import WireError
from shared.flat import Layout

S = TypeVar("S", np.float32, np.int8)


def numbers(layout: Layout, vector: Tensor) -> NDArray[np.float32]:
    """Return ``vector`` (size,) as float32 on the host."""
    if vector.shape != (layout.size,):
        raise ValueError(f"vector of shape ({layout.size},) expected, got {tuple(vector.shape)}")
    host: NDArray[np.float32] = vector.detach().to("cpu", torch.float32).numpy()
    return host


def packed(layout: Layout, flat: NDArray[S]) -> NDArray[S]:
    """Return the true elements of ``flat`` (size,) in order, (parameters,)."""
    return np.concatenate([flat[place.start : place.stop] for place in layout.places])


def unpacked(layout: Layout, values: NDArray[S]) -> NDArray[S]:
    """Lay ``values`` (parameters,) out with zero padding, (size,)."""
    flat = np.zeros(layout.size, dtype=values.dtype)
    taken = 0
    for place in layout.places:
        flat[place.start : place.stop] = values[taken : taken + place.size]
        taken += place.size
    return flat


def checked(flat: NDArray[np.float32]) -> Tensor:
    """Return ``flat`` (size,) as a tensor.

    Raises:
        WireError: a number is not finite.
    """
    finite = np.isfinite(flat)
    if not finite.all():
        address = int(np.argmin(finite))
        raise WireError(f"finite gradient expected, got {flat[address]} at address {address}")
    return torch.from_numpy(flat)
