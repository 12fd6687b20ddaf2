"""Rows of tokens of which only some are predicted, and the cross-entropy of these.

A row holds the tokens of a prompt as they are, those of the response with SCORED added, and -1
after the end. So rows of any division into prompts and responses are plain integers: batches,
caches and kept activations need to know nothing of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from shared.captured.capture import is_captured
from shared.models.next_token import IGNORED, logits, losses_of

SCORED = 1 << 24  # above any vocabulary
Ids = NDArray[np.int64]


def mark_scored(prompt: Ids, response: Ids) -> Ids:
    """One row (n,) of a prompt and the response that is predicted."""
    return np.concatenate([prompt, response + SCORED])


def split_row(row: Ids) -> tuple[Ids, Ids]:
    """The prompt and the response of a row that is one example; padding is left out."""
    row = row[row >= 0]
    return row[row < SCORED], row[row >= SCORED] - SCORED


def tokens_of(rows: Tensor) -> Tensor:
    """The tokens (B, T) of rows up to the longest; what is after a text's end is token 0.

    Attention is causal, so that what fills a row changes no token before it.
    """
    return _trim(rows).clamp(min=0) & (SCORED - 1)


def targets_of(rows: Tensor) -> Tensor:
    """The token after each (B, T) if it is predicted, else IGNORED."""
    after = F.pad(_trim(rows)[:, 1:], (0, 1), value=-1)
    return torch.where(after >= SCORED, after - SCORED, IGNORED)


def response_losses(module: nn.Module, rows: Tensor, points: int = 1) -> Tensor:
    """Mean loss of the predicted tokens of each row (B,), float64; one forward pass.

    Args:
        module: a causal language model.
        rows: of a batch; of several points in parameter space, one batch after the other.
        points: how many batches of equal size the rows are.
    """
    tokens, targets = tokens_of(rows), targets_of(rows)
    is_scored = targets != IGNORED
    count = is_scored.sum(1).clamp(min=1)
    if is_captured(rows):
        losses = losses_of(logits(module, tokens).flatten(0, 1), targets.flatten())
        return losses.view(targets.shape).double().sum(1) / count
    with _only_at(module, is_scored, points) as selection:
        scores = selection.select(logits(module, tokens))
    losses = losses_of(scores, targets[is_scored])
    spread = losses.new_zeros(targets.shape, dtype=torch.float64)
    spread = spread.masked_scatter(is_scored, losses.double())
    return spread.sum(1) / count


class _Selection:
    """A hook that lets the output layer see some of the hidden states (B, T, h) alone.

    The output layer gets those of each point, (points, n, h). A point may have fewer than another:
    zeros fill its row.
    """

    def __init__(self, chosen: Tensor, points: int) -> None:
        self.chosen, self.fired = chosen, False
        counts = chosen.view(points, -1).sum(1)
        places = torch.arange(int(counts.max()), device=chosen.device)
        self.is_filled = places < counts[:, None]
        self.is_even = points == 1 or bool(self.is_filled.all())

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Replace hidden states by the chosen ones of each point."""
        del layer
        if self.fired or len(args) != 1 or args[0].shape[:-1] != self.chosen.shape:
            return None
        self.fired = True
        chosen = args[0][self.chosen]
        if self.is_even:
            return (chosen.view(*self.is_filled.shape, -1),)
        hidden = chosen.new_zeros(*self.is_filled.shape, chosen.shape[-1])
        hidden[self.is_filled] = chosen
        return (hidden,)

    def select(self, scores: Tensor) -> Tensor:
        """The logits (n, V) of all chosen ones, of what the model returned."""
        if not self.fired:
            return scores[self.chosen]
        return scores.flatten(0, 1) if self.is_even else scores[self.is_filled]


@contextmanager
def _only_at(module: nn.Module, chosen: Tensor, points: int) -> Iterator[_Selection]:
    """Compute logits at the chosen positions (B, T) alone: a vocabulary is large."""
    selection, any_module = _Selection(chosen, points), module
    layer: Any = getattr(any_module, "get_output_embeddings", lambda: None)()
    hook = layer.register_forward_pre_hook(selection) if layer is not None else None
    try:
        yield selection
    finally:
        if hook is not None:
            hook.remove()


def _trim(rows: Tensor) -> Tensor:
    """Rows without the padding that all of them share; whole while a pass is captured."""
    if is_captured(rows):
        return rows
    longest = int((rows >= 0).sum(1).max()) if len(rows) else 0
    return rows[:, : max(longest, 1)]
