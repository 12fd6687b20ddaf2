"""Prompt and verbaliser: a causal model classifies by the logits of words after a prompt.

Schick & Schütze 2021, https://arxiv.org/abs/2001.07676; Gao et al. 2021,
https://arxiv.org/abs/2012.15723. The loss is over the classes' words alone, not the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.base.errors import ConfigError
from shared.captured.capture import is_captured
from shared.generation.prompt_frame import PromptFrame
from shared.models.model import Tokenizer

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Verbaliser:
    """The prompt's tokens around a text, and the first token of each class's word."""

    tokenizer: Tokenizer
    around: tuple[Ids, ...]  # before a text, between its copies, and after it
    words: tuple[int, ...]  # (k,)
    reserve: int = 0  # tokens that stay free for what is read after the prompt

    @classmethod
    def of(cls, tokenizer: Tokenizer, frame: PromptFrame, words: tuple[str, ...]) -> "Verbaliser":
        """Make it from the frame of a prompt and the words that may follow.

        Raises:
            ConfigError: words begin with the same token.
        """
        firsts = tuple(frame.label(word)[0] for word in words)
        if len(set(firsts)) != len(words):
            pairs = ", ".join(f"{w!r}: {f}" for w, f in zip(words, firsts, strict=True))
            raise ConfigError(
                f"label-words whose first tokens differ after the prompt expected, got {pairs}; "
                "choose other words (with tokens of bytes, end the prompt in a space), or "
                "label-scoring = sum"
            )
        return cls(tokenizer, frame.around, firsts)

    def encode(self, text: str, length: int) -> Ids:
        """The tokens of the prompt with the text in it, cut to ``length`` tokens less the reserve.

        Each copy of the text is cut alike.

        Raises:
            ConfigError: the prompt leaves no room for a text.
        """
        first, *rest = self.around
        room = length - sum(map(len, self.around)) - self.reserve
        if room < len(rest):
            raise ConfigError(
                f"block-size above {length - room + len(rest) - 1} expected, the length of the "
                f"prompt{' and the longest label' * bool(self.reserve)}; got {length}"
            )
        tokens = self.tokenizer.encode(text)[: room // len(rest)]
        return np.concatenate([first, *(part for piece in rest for part in (tokens, piece))])

    def logits(self, module: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The words' logits (B, k) after the last token of each text."""
        return word_logits(self.words)(module, tokens, lengths)


def word_logits(words: Sequence[int]) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """Make the function that computes the logits of ``words`` (k,) after the last token of texts.

    Attention is causal, so the padding after a text does not change them.
    """

    def logits(module: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
        filled, rows = tokens.clamp(min=0), torch.arange(len(tokens), device=tokens.device)
        positions, which = _last_positions(tokens, lengths)
        any_module: Any = module
        if "logits_to_keep" not in signature(any_module.forward).parameters:
            scores: Tensor = any_module(filled, use_cache=False).logits
            return _columns(scores[rows, lengths - 1], words)
        with _select(any_module.get_output_embeddings(), len(positions), (rows, which)):
            kept: Tensor = any_module(filled, use_cache=False, logits_to_keep=positions).logits
        return _columns(kept[:, 0], words)

    return logits


def _columns(scores: Tensor, words: Sequence[int]) -> Tensor:
    """Columns ``words`` (k,) of scores (B, V); no index goes to a card."""
    return torch.stack([scores[:, word] for word in words], 1)


def _last_positions(tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (p,) at which a text of tokens (B, T) may end, and which (B,) is each text's."""
    if is_captured(tokens):
        return torch.arange(tokens.shape[1], device=tokens.device), lengths - 1
    positions, which = torch.unique(lengths - 1, return_inverse=True)
    return positions, which


@contextmanager
def _select(layer: nn.Module, count: int, chosen: tuple[Tensor, Tensor]) -> Iterator[None]:
    """Let the output layer see, of hidden states (B, count, h), one of each text, as (B, 1, h).

    A vocabulary is large: this product would be made for every text at every text's last position.
    """

    def select(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        rows, which = chosen
        if args[0].shape[:2] != (len(rows), count):
            raise ConfigError(
                f"hidden states of {len(rows)} texts at {count} positions expected at the output "
                f"layer, got {tuple(args[0].shape)}"
            )
        return (args[0][rows, which][:, None],)

    hook = layer.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
