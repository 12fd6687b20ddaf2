"""Many queries in one forward pass: a batch holds every direction, at one sign or at both."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from shared.base.errors import ConfigError
from shared.base.flat import FlatModel
from shared.directions import Directions
from shared.estimation.batched_mode import BatchedMode, DeferredProduct
from shared.estimation.batched_parameters import BatchedParameters, perturb_all
from shared.estimation.blockwise import FlatParameter
from shared.estimation.perturber import Perturber
from shared.models.next_token import chunk_logits, logits, next_token_loss
from shared.randomness.streams import Key

TOLERANCE = 1e-4  # relative: losses that differ more were not computed point by point

# (module, rows (P·B, n) of P points, P) -> losses (P·B,)
Each = Callable[[nn.Module, Tensor, int], Tensor]
Piece = tuple[int, slice, Tensor]  # logits (p, r, V): the first point, the rows, the numbers


@dataclass
class BatchedQueries:
    """Losses of a model at θ ± εz for several directions at once; θ is read only.

    Logits are made and used a chunk at a time, whatever the number of points. The first loss is
    compared with one measured alone: a module may mix the examples of a batch, or may use a
    parameter in a way that torch functions do not show. ``begin`` is entered for each pass of
    blocks (n, T): it may let the pass begin with what is kept of them.
    """

    model: FlatModel
    directions: Directions
    perturber: Perturber
    begin: Callable[[Tensor], AbstractContextManager[None]] = lambda _: nullcontext()
    each: Each | None = None  # losses of rows; None: of next tokens, logits made chunk by chunk
    is_checked: bool = False  # whether a batched loss was compared with one measured alone

    def losses(self, keys: Sequence[Key], eps: float, blocks: Tensor) -> Tensor:
        """Mean losses (2, q) float64 of blocks (q, B, T): at +eps for each key, then at −eps.

        Raises:
            ConfigError: the module does something with its parameters that cannot be batched.
        """
        scales = [eps] * len(keys) + [-eps] * len(keys)
        return self.at([*keys, *keys], scales, torch.cat([blocks, blocks])).view(2, -1)

    def at(self, keys: Sequence[Key], scales: Sequence[float], blocks: Tensor) -> Tensor:
        """Mean losses (P,) float64 of blocks (P, B, T) at θ + scales[p] * z(keys[p]).

        Raises:
            ConfigError: the module does something with its parameters that cannot be batched.
        """
        parameters = perturb_all(self.directions, keys, scales, blocks.device)
        with torch.inference_mode():
            losses = self._means(parameters, blocks)
        if not self.is_checked:
            self._check(keys[0], scales[0], blocks[0], float(losses[0]))
        return losses

    def _check(self, key: Key, eps: float, blocks: Tensor, batched: float) -> None:
        with self.perturber.at(key, eps), self.begin(blocks):
            alone = self._alone(blocks)
        if abs(batched - alone) > TOLERANCE * abs(alone):
            raise ConfigError(
                f"parallel-queries: {type(self.model.module).__name__} gives {batched} in a batch "
                f"of directions and {alone} for that one alone; set parallel-queries = 1"
            )
        self.is_checked = True

    def _alone(self, rows: Tensor) -> float:
        """Mean loss of rows (B, n) at the module's parameters as they are."""
        if self.each is None:
            return next_token_loss(self.model.module, rows)
        with torch.inference_mode():
            return float(self.each(self.model.module, rows, 1).mean())

    def _means(self, parameters: BatchedParameters, blocks: Tensor) -> Tensor:
        """Mean losses (P,) of blocks (P, B, n)."""
        if self.each is None:
            sums = self._sums(parameters, blocks)
            return sums / (blocks.shape[1] * (blocks.shape[2] - 1))
        rows = blocks.flatten(0, 1)
        with self.begin(rows), BatchedMode(parameters, self._known, blocks.shape[1], None):
            losses = self.each(self.model.module, rows, len(blocks))
        return losses.view(len(blocks), -1).mean(1)

    def _sums(self, parameters: BatchedParameters, blocks: Tensor) -> Tensor:
        """Summed losses (P,) of blocks (P, B, T).

        If the module changes the logits after its last layer, they are made whole.
        """
        module: Any = self.model.module
        last = module.get_output_embeddings()
        mode = BatchedMode(parameters, self._known, blocks.shape[1], last and last.weight)
        with self.begin(blocks.flatten(0, 1)), mode:
            scores = logits(module, blocks.flatten(0, 1))
        deferred = mode.deferred
        if deferred is None or scores is not deferred.placeholder:
            pieces = self._whole_logits(parameters, blocks)
        else:
            pieces = self._logits(deferred, parameters, blocks.shape)
        return _sum_losses(pieces, blocks[:, :, 1:].flatten(1))

    def _whole_logits(self, parameters: BatchedParameters, blocks: Tensor) -> Iterator[Piece]:
        mode = BatchedMode(parameters, self._known, blocks.shape[1], None)
        with self.begin(blocks.flatten(0, 1)), mode:
            whole = logits(self.model.module, blocks.flatten(0, 1))
        rows = whole.view(*blocks.shape, -1)[:, :, :-1].flatten(1, 2)
        yield from ((point, slice(None), part[None]) for point, part in enumerate(rows))

    def _logits(
        self, deferred: DeferredProduct, parameters: BatchedParameters, shape: torch.Size
    ) -> Iterator[Piece]:
        """Logits of the tokens that have a next one, a chunk at a time."""
        hidden = deferred.hidden.view(*shape, -1)[:, :, :-1].flatten(1, 2)  # (P, R, C)
        count, rows = hidden.shape[:2]
        most = max(1, chunk_logits(hidden) // deferred.weight.shape[0])  # rows of a piece
        together = max(1, most // rows)
        for first in range(0, count, together):
            stop = min(first + together, count)
            for top in range(0, rows, most):
                part = slice(top, min(top + most, rows))
                with BatchedMode(parameters.part(first, stop), self._known, 1, None):
                    flat = hidden[first:stop, part].flatten(0, 1)
                    out = F.linear(flat, deferred.weight, deferred.bias)
                yield first, part, out.view(stop - first, -1, out.shape[-1])

    @cached_property
    def _known(self) -> dict[int, FlatParameter]:
        named, flat = dict(self.model.module.named_parameters()), self.model.flat
        return {
            id(named[span.name]): FlatParameter(
                flat[span.start : span.stop], span.start, span.shape, name=span.name
            )
            for span in self.model.layout.tensors
        }


def _sum_losses(pieces: Iterator[Piece], targets: Tensor) -> Tensor:
    """Cross-entropy summed in float64 for each point (P,), of targets (P, R)."""
    sums = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)
    for first, part, piece in pieces:
        wanted = targets[first : first + len(piece), part]
        losses = F.cross_entropy(piece.flatten(0, 1).float(), wanted.flatten(), reduction="none")
        sums[first : first + len(piece)] += losses.view(len(piece), -1).sum(1, dtype=torch.float64)
    return sums
