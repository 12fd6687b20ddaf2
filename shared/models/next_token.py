"""Next-token cross-entropy in nats, computed in float32 and summed in float64."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from shared.models.model import FORWARDS, Forward, TokenLosses

CHUNK_LOGITS = 1 << 22  # logits that cross-entropy treats at once, which bounds its temporaries
CARD_CHUNK = 1 << 26  # the same on a card, where every chunk starts some kernels: 256 MiB
IGNORED = -100  # a target that does not count


def next_token_loss(module: nn.Module, blocks: Tensor) -> float:
    """Return the mean loss of the next tokens of blocks (B, T). Costs one forward pass."""
    with torch.inference_mode():
        return float(loss_tensor(module, blocks))


def example_losses(module: nn.Module, blocks: Tensor) -> Tensor:
    """Return the mean loss of each block (B,), float64. Costs one forward pass."""
    with torch.inference_mode():
        return _token_losses(module, blocks).double().sum(1) / (blocks.shape[1] - 1)


def loss_tensor(module: nn.Module, blocks: Tensor) -> Tensor:
    """Return what ``next_token_loss`` returns as a float64 scalar, for backpropagation."""
    predictions = blocks.shape[0] * (blocks.shape[1] - 1)  # all tokens but the first of each block
    return _token_losses(module, blocks).sum(dtype=torch.float64) / predictions


def _token_losses(module: nn.Module, blocks: Tensor) -> Tensor:
    """Return the loss (B, T) float32 of predicting the token after each; 0 at the last.

    Targets are shifted, not logits: slicing those would copy them. Cross-entropy goes through the
    rows in chunks: beside the logits, a large vocabulary needs CHUNK_LOGITS numbers, not a copy.
    A small model of ours may have compiled code for all of it.
    """
    compiled: TokenLosses | None = getattr(module, "compiled_losses", None)
    if compiled is not None and (losses := compiled(module, blocks)) is not None:
        return losses
    rows = logits(module, blocks).flatten(0, 1)  # (B * T, V)
    return losses_of(rows, next_tokens(blocks).view(-1)).view(blocks.shape)


def losses_of(rows: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy (n,) float32 of targets (n,) by logits (n, V); 0 where IGNORED."""
    size = max(1, chunk_logits(rows) // rows.shape[1])
    if len(rows) <= size:
        return F.cross_entropy(rows.float(), targets, ignore_index=IGNORED, reduction="none")
    losses = [
        F.cross_entropy(part.float(), target, ignore_index=IGNORED, reduction="none")
        for part, target in zip(torch.split(rows, size), torch.split(targets, size), strict=True)
    ]
    return torch.cat(losses)


def chunk_logits(tensor: Tensor) -> int:
    """How many logits are treated at once on the device of ``tensor``."""
    return CARD_CHUNK if tensor.is_cuda else CHUNK_LOGITS


def next_tokens(blocks: Tensor) -> Tensor:
    """Return the token after each of blocks (B, T); IGNORED after the last of a block."""
    return F.pad(blocks[:, 1:], (0, 1), value=IGNORED)


def logits(module: nn.Module, blocks: Tensor) -> Tensor:
    """Return the logits (B, T, V) of blocks (B, T), by a registered short forward if there is one.

    The short forward of a class of modules makes fewer torch calls and gives the same numbers.
    """
    return _find_forward(type(module).__name__)(module, blocks)


@cache
def _find_forward(architecture: str) -> Forward:
    return FORWARDS[architecture] if architecture in FORWARDS.names() else _call


def _call(module: nn.Module, blocks: Tensor) -> Tensor:
    scores: Tensor = module(blocks, use_cache=False, return_dict=False)[0]
    return scores
