"""Plain or heavy-ball descent, as ``torch.optim.SGD`` does it."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from shared.base.errors import ConfigError
from shared.base.flat import Layout
from shared.base.options import option
from shared.optimizers import OPTIMIZERS, restore_
from shared.optimizers.gradient import Gradient, add_scaled_


@OPTIMIZERS.register("sgd")
@dataclass
class SGD:
    """theta -= rate * v, where v = momentum * v + gradient + weight_decay * theta.

    Without momentum the gradient adds itself straight to theta and no second vector is ever built.
    """

    exact: ClassVar[bool] = True

    layout: Layout
    device: torch.device | str = "cpu"
    _: KW_ONLY
    momentum: float = option(
        0.0, "share of the last step that the next one keeps", at_least=0, below=1
    )
    weight_decay: float = option(
        0.0, "decay of the parameters, as part of the gradient", at_least=0
    )
    velocity: Tensor | None = field(init=False, default=None)  # (size,) float32, with momentum

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum in [0, 1) expected, got {self.momentum}")
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight decay of at least 0 expected, got {self.weight_decay}")
        if self.momentum:
            self.velocity = torch.zeros(self.layout.size, device=self.device)

    @property
    def additive(self) -> bool:
        """Whether a step is nothing but the gradient, added."""
        return not self.momentum and not self.weight_decay

    def step_(self, flat: Tensor, gradient: Gradient, learning_rate: float) -> None:
        """Move ``flat`` (size,) one step; the padding stays zero."""
        if self.velocity is None:
            if self.weight_decay:
                add_scaled_(flat, flat, -learning_rate * self.weight_decay)
            gradient.add_to_(flat, -learning_rate)
            self.layout.clear_padding_(flat)
            return
        self.velocity *= self.momentum
        gradient.add_to_(self.velocity, 1.0)
        self.layout.clear_padding_(self.velocity)
        if self.weight_decay:
            add_scaled_(self.velocity, flat, self.weight_decay)
        add_scaled_(flat, self.velocity, -learning_rate)

    def state(self) -> Mapping[str, Tensor]:
        """Return the live velocity, or nothing without momentum."""
        return {} if self.velocity is None else {"velocity": self.velocity}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state()`` gave; SnapshotError where it does not fit."""
        restore_(self.state(), state)
