"""Adam with decoupled weight decay (AdamW), the same bits on every machine.

Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101; without decay it is Adam. A step holds
one vector of the parameters' size beside the two moments, for as long as it lasts.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from shared.errors import ConfigError
from shared.flat import Layout
from shared.gradient import Gradient, add_scaled_
from shared.optimizers import OPTIMIZERS
from shared.optimizers.moments import Moments, parts


@OPTIMIZERS.register("adam")
@dataclass
class Adam:
    """theta -= rate * (weight_decay * theta + mean / (root of mean square + epsilon))."""

    exact: ClassVar[bool] = True
    additive: ClassVar[bool] = False

    layout: Layout
    device: torch.device | str = "cpu"
    _: KW_ONLY
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    moments: Moments = field(init=False)

    def __post_init__(self) -> None:
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight decay of at least 0 expected, got {self.weight_decay}")
        self.moments = Moments(self.layout, self.device, self.beta1, self.beta2, self.epsilon)

    def step_(self, flat: Tensor, gradient: Gradient, learning_rate: float) -> None:
        """Move ``flat`` (size,) one step; the padding stays zero."""
        self.moments.absorb(gradient)
        if self.weight_decay:
            add_scaled_(flat, flat, -learning_rate * self.weight_decay)
        for part in parts(flat.numel()):
            flat[part] -= self.moments.update(part).mul_(learning_rate)

    def state(self) -> Mapping[str, Tensor]:
        """Return both moments and the number of steps, live."""
        return self.moments.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state()`` gave; SnapshotError where it does not fit."""
        self.moments.load_state(state)
