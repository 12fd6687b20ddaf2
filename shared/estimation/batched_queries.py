"""Many queries in one forward pass: every direction at both signs is a group of one batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from shared.base.errors import ConfigError
from shared.base.flat import FlatModel
from shared.directions import Directions
from shared.estimation.batched_mode import BatchedMode, Head, Named
from shared.estimation.batched_parameters import BatchedParameters, batched_parameters
from shared.estimation.blockwise import FlatParameter
from shared.estimation.perturber import Perturber
from shared.models.next_token import CHUNK_LOGITS, logits, next_token_loss
from shared.randomness.streams import Key

NEAR = 1e-4  # relative: losses that differ more were not computed group by group


@dataclass
class BatchedQueries:
    """Losses of a causal language model at θ ± εz for several directions at once; θ is read only.

    Logits are made and used a chunk at a time, however many groups there are. The first loss is
    compared with one measured alone: a module may mix the examples of a batch, or may use a
    parameter in a way that torch functions do not show.
    """

    model: FlatModel
    directions: Directions
    perturber: Perturber
    _proven: bool = field(default=False, init=False)

    def losses(self, keys: Sequence[Key], eps: float, blocks: Tensor) -> Tensor:
        """Mean losses (2, p) float64 of blocks (p, B, T): at +eps for each key, then at −eps.

        Raises:
            ConfigError: the module does something with its parameters that cannot be batched.
        """
        groups, doubled = (
            batched_parameters(self.directions, keys, eps),
            torch.cat([blocks, blocks]),
        )
        with torch.inference_mode():
            sums = self._sums(groups, doubled)
        found = sums.view(2, -1) / (blocks.shape[1] * (blocks.shape[2] - 1))
        if not self._proven:
            self._prove(keys[0], eps, blocks[0], float(found[0, 0]))
        return found

    def _prove(self, key: Key, eps: float, blocks: Tensor, found: float) -> None:
        with self.perturber.at(key, eps):
            alone = next_token_loss(self.model.module, blocks)
        if abs(found - alone) > NEAR * abs(alone):
            raise ConfigError(
                f"parallel-queries: {type(self.model.module).__name__} gives {found} in a batch of "
                f"directions and {alone} for that one alone; set parallel-queries = 1"
            )
        self._proven = True

    def _sums(self, groups: BatchedParameters, blocks: Tensor) -> Tensor:
        """Summed losses (G,) of blocks (G, B, T).

        Where something is done to the logits afterwards, they are made whole, and change there.
        """
        module: Any = self.model.module
        last = module.get_output_embeddings()
        mode = BatchedMode(groups, self._named, blocks.shape[1], last and last.weight)
        with mode:
            scores = logits(module, blocks.flatten(0, 1))
        head = mode.head
        if head is None or scores is not mode.stand_in:
            mode = BatchedMode(groups, self._named, blocks.shape[1], None)
            with mode:
                whole = logits(module, blocks.flatten(0, 1))
            rows = whole.view(*blocks.shape, -1)[:, :, :-1].flatten(1, 2)
            pieces: Iterator[tuple[int, slice, Tensor]] = (
                (g, slice(None), part[None]) for g, part in enumerate(rows)
            )
        else:
            pieces = self._logits(head, groups, blocks.shape)
        return _summed(pieces, blocks[:, :, 1:].flatten(1))

    def _logits(
        self, head: Head, groups: BatchedParameters, shape: torch.Size
    ) -> Iterator[tuple[int, slice, Tensor]]:
        """Logits (g, r, V) of the tokens that have a next one: first group, rows, and the piece."""
        hidden = head.hidden.view(*shape, -1)[:, :, :-1].flatten(1, 2)  # (G, R, C)
        count, rows = hidden.shape[:2]
        most = max(1, CHUNK_LOGITS // head.weight.shape[0])  # rows of a piece
        together = max(1, most // rows)
        for first in range(0, count, together):
            stop = min(first + together, count)
            for top in range(0, rows, most):
                part = slice(top, min(top + most, rows))
                inner = BatchedMode(groups.part(first, stop), self._named, 1, None)
                with inner:
                    flat = hidden[first:stop, part].flatten(0, 1)
                    out = F.linear(flat, head.weight, head.bias)
                yield first, part, out.view(stop - first, -1, out.shape[-1])

    @cached_property
    def _named(self) -> dict[int, Named]:
        named, flat = dict(self.model.module.named_parameters()), self.model.flat
        return {
            id(named[span.name]): Named(
                span.name, FlatParameter(flat[span.start : span.stop], span.start, span.shape)
            )
            for span in self.model.layout.tensors
        }


def _summed(pieces: Iterator[tuple[int, slice, Tensor]], targets: Tensor) -> Tensor:
    """Cross-entropy summed in fp64 per group (G,), of targets (G, R)."""
    sums = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)
    for first, part, piece in pieces:
        wanted = targets[first : first + len(piece), part]
        losses = F.cross_entropy(piece.flatten(0, 1).float(), wanted.flatten(), reduction="none")
        sums[first : first + len(piece)] += losses.view(len(piece), -1).sum(1, dtype=torch.float64)
    return sums
