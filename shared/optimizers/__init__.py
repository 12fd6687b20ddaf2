"""Update rules that every replica, the server's too, runs over the same gradients."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

from torch import Tensor

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
