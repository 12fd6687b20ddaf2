"""MuDaMW: AdamW whose matrix updates are orthogonalised, the same bits on every machine.

The moments are Adam's (Kingma & Ba 2015); the update of a matrix is orthogonalised as in Muon
(Jordan et al. 2024) and scaled by 0.2 sqrt(max(m, n)), which gives it the root mean square of a
usual AdamW update (Liu et al. 2025, "Muon is scalable for LLM training",
https://arxiv.org/abs/2502.16982); the decay is decoupled (Loshchilov & Hutter 2019). To
orthogonalise lifts small singular values to the size of the large ones, and with them the noise of
a zeroth-order estimate from few queries.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from shared.base.errors import ConfigError
from shared.base.flat import TensorSpan
from shared.base.options import option
from shared.optimizers import OPTIMIZERS
from shared.optimizers.adam import WithMoments
from shared.optimizers.gradient import Gradient
from shared.optimizers.newton_schulz import LIMIT, orthogonalise


@OPTIMIZERS.register("mudamw")
@dataclass(kw_only=True)
class MuDaMW(WithMoments):
    """AdamW's moments; matrices step along an orthogonalised update, other tensors along Adam's."""

    cautious: bool = option(False, "keep only coordinates whose update and gradient agree in sign")

    def __post_init__(self) -> None:
        for span in self.layout.tensors:
            if len(span.shape) == 2 and span.size >= LIMIT:
                raise ConfigError(f"mudamw takes matrices below {LIMIT} elements, got {span}")
        super().__post_init__()

    def step_(self, flat: Tensor, gradient: Gradient, learning_rate: float) -> None:
        """Move ``flat`` (size,) one step, tensor by tensor; the padding stays zero."""
        dense = self.moments.absorb(gradient)
        self.decay_(flat, learning_rate)
        for span in self.layout.tensors:
            part = slice(span.start, span.stop)
            update = self._update(span, part)
            if self.cautious:
                update = cautious_mask(update, dense[part])
            flat[part] -= update * learning_rate

    def _update(self, span: TensorSpan, part: slice) -> Tensor:
        update = self.moments.update(part)
        if len(span.shape) != 2:
            return update
        scale = 0.2 * math.sqrt(max(span.shape))
        return orthogonalise(update.view(span.shape)).mul(scale).reshape(-1)


def cautious_mask(update: Tensor, gradient: Tensor) -> Tensor:
    """Drop what points against the gradient and scale the rest by size / (kept + 1).

    Liang et al. 2024, "Cautious optimizers", https://arxiv.org/abs/2411.16085; both are (n,).
    """
    kept = update.sign() * gradient.sign() > 0
    return update * kept * (update.numel() / (int(kept.sum()) + 1))
