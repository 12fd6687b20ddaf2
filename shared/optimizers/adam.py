"""Adam with decoupled weight decay (AdamW), the same bits on every machine.

Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101; without decay it is Adam. A step holds
one vector of the parameters' size beside the two moments, for as long as it lasts.
"""

from dataclasses import dataclass

from torch import Tensor

from shared.optimizers import OPTIMIZERS
from shared.optimizers.gradient import Gradient
from shared.optimizers.moments import WithMoments, parts


@OPTIMIZERS.register("adam")
@dataclass
class Adam(WithMoments):
    """theta -= rate * (weight_decay * theta + mean / (root of mean square + epsilon))."""

    def step_(self, flat: Tensor, gradient: Gradient, learning_rate: float) -> None:
        """Move ``flat`` (size,) one step; the padding stays zero."""
        self.moments.absorb(gradient)
        self.decay_(flat, learning_rate)
        for part in parts(flat.numel()):
            flat[part] -= self.moments.update(part).mul_(learning_rate)
