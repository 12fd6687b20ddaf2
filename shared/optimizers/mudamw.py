"""MuDaMW: AdamW whose matrix updates are orthogonalised, the same bits on every machine.

The moments are Adam's (Kingma & Ba 2015); the update of a matrix is orthogonalised as in Muon
(Jordan et al. 2024) and scaled by 0.2 sqrt(max(m, n)), which gives it the root mean square of a
usual AdamW update (Liu et al. 2025, "Muon is scalable for LLM training",
https://arxiv.org/abs/2502.16982); the decay is decoupled (Loshchilov & Hutter 2019). To
orthogonalise lifts small singular values to the size of the large ones, and with them the noise of
a zeroth-order estimate from few queries.
"""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from shared.errors import ConfigError
from shared.flat import Layout, Place
from shared.gradient import Gradient, add_scaled_
from shared.optimizers import OPTIMIZERS
from shared.optimizers.moments import Moments
from shared.optimizers.newton_schulz import LIMIT, orthogonalise


@OPTIMIZERS.register("mudamw")
@dataclass
class MuDaMW:
    """AdamW's moments; matrices step along an orthogonalised update, other tensors along Adam's."""

    exact: ClassVar[bool] = True
    additive: ClassVar[bool] = False

    layout: Layout
    device: torch.device | str = "cpu"
    _: KW_ONLY
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    cautious: bool = False  # keep only coordinates whose update agrees with the gradient in sign
    moments: Moments = field(init=False)

    def __post_init__(self) -> None:
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight decay of at least 0 expected, got {self.weight_decay}")
        for place in self.layout.places:
            if len(place.shape) == 2 and place.size >= LIMIT:
                raise ConfigError(f"mudamw takes matrices below {LIMIT} elements, got {place}")
        self.moments = Moments(self.layout, self.device, self.beta1, self.beta2, self.epsilon)

    def step_(self, flat: Tensor, gradient: Gradient, learning_rate: float) -> None:
        """Move ``flat`` (size,) one step, tensor by tensor; the padding stays zero."""
        dense = self.moments.absorb(gradient)
        if self.weight_decay:
            add_scaled_(flat, flat, -learning_rate * self.weight_decay)
        for place in self.layout.places:
            part = slice(place.start, place.stop)
            update = self._update(place, part)
            if self.cautious:
                update = agreeing(update, dense[part])
            flat[part] -= update * learning_rate

    def _update(self, place: Place, part: slice) -> Tensor:
        update = self.moments.update(part)
        if len(place.shape) != 2:
            return update
        scale = 0.2 * math.sqrt(max(place.shape))
        return orthogonalise(update.view(place.shape)).mul(scale).reshape(-1)

    def state(self) -> Mapping[str, Tensor]:
        """Return both moments and the number of steps, live."""
        return self.moments.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state()`` gave; SnapshotError where it does not fit."""
        self.moments.load_state(state)


def agreeing(update: Tensor, gradient: Tensor) -> Tensor:
    """Drop what points against the gradient and scale the rest by size / (kept + 1).

    Liang et al. 2024, "Cautious optimizers", https://arxiv.org/abs/2411.16085; both are (n,).
    """
    kept = update.sign() * gradient.sign() > 0
    return update * kept * (update.numel() / (int(kept.sum()) + 1))
