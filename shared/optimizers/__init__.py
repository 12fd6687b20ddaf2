"""Update rules that every replica, the server's too, runs over the same gradients."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

from torch import Tensor

from shared.base.errors import SnapshotError
from shared.base.registry import Registry
from shared.optimizers.gradient import Gradient


class Optimizer(Protocol):
    """Steps a flat vector down a gradient, with the same bits on every machine where ``exact``."""

    exact: ClassVar[bool]  # the same bits on every device, at any thread count

    @property
    def additive(self) -> bool:
        """Whether a step is ``gradient.add_to_(flat, -learning_rate)``, and nothing else."""

    def step_(self, flat: Tensor, gradient: Gradient, learning_rate: float) -> None:
        """Move ``flat`` (size,) one step; the padding stays zero."""

    def state(self) -> Mapping[str, Tensor]:
        """What a snapshot must hold beside the parameters: live tensors by name, perhaps none."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state()`` of its kind gave; SnapshotError where it does not fit."""


OPTIMIZERS: Registry[Callable[..., Optimizer]] = Registry("optimizer", "shared.optimizers")


def restore_(live: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy ``saved`` into the tensors of ``live``; nothing is written unless everything fits.

    Raises:
        SnapshotError: the names, or the shape or dtype under one name, are not those of ``live``.
    """
    if live.keys() != saved.keys():
        raise SnapshotError(f"optimizer state {sorted(live)} expected, got {sorted(saved)}")
    for name, tensor in live.items():
        expected, got = _kind(tensor), _kind(saved[name])
        if expected != got:
            raise SnapshotError(f"optimizer state {name!r} of {expected} expected, got {got}")
    for name, tensor in live.items():
        tensor.copy_(saved[name])


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
