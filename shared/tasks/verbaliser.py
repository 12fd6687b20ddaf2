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
from shared.models.model import Tokenizer

TEXT = "{text}"
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Verbaliser:
    """The prompt's tokens around a text, and the first token of each class's word.

    The token that the model expects at the start of a text goes before the prompt.
    """

    tokenizer: Tokenizer
    before: Ids
    after: Ids
    words: tuple[int, ...]  # (k,)
    reserve: int = 0  # tokens that stay free for what is read after the prompt

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompt: str, words: tuple[str, ...]) -> "Verbaliser":
        """Make it from a prompt with ``{text}`` in it and the words that may follow.

        Raises:
            ConfigError: the prompt has no ``{text}``, or words begin with the same token.
        """
        before, marker, after = prompt.partition(TEXT)
        if not marker:
            raise ConfigError(f"prompt: a text with {TEXT} in it expected, got {prompt!r}")
        firsts = tuple(first_token(tokenizer, after, word) for word in words)
        if len(set(firsts)) != len(words):
            pairs = ", ".join(f"{w!r}: {f}" for w, f in zip(words, firsts, strict=True))
            raise ConfigError(
                f"label-words whose first tokens differ after the prompt {prompt!r} expected, got "
                f"{pairs}; choose other words (with tokens of bytes, end the prompt in a "
                "space), or label-scoring = sum"
            )
        start = np.concatenate([tokenizer.start, tokenizer.encode(before)])
        return cls(tokenizer, start, tokenizer.encode(after), firsts)

    def encode(self, text: str, length: int) -> Ids:
        """The tokens of the prompt with the text in it, cut to ``length`` tokens less the reserve.

        Raises:
            ConfigError: the prompt leaves no room for a text.
        """
        room = length - len(self.before) - len(self.after) - self.reserve
        if room < 1:
            raise ConfigError(
                f"block-size above {length - room} expected, the length of the prompt"
                f"{' and the longest label' * bool(self.reserve)}; got {length}"
            )
        return np.concatenate([self.before, self.tokenizer.encode(text)[:room], self.after])

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


def first_token(tokenizer: Tokenizer, prompt: str, word: str) -> int:
    """The first token of a word that follows the end of a prompt, after a space.

    Raises:
        ConfigError: the tokenizer joins the word with the prompt's end.
    """
    return label_tokens(tokenizer, prompt, word)[0]


def label_tokens(tokenizer: Tokenizer, prompt: str, label: str) -> tuple[int, ...]:
    """All tokens of a label of one or several words, which follows a prompt after a space.

    Raises:
        ConfigError: the tokenizer joins the label with the prompt's end.
    """
    start = tokenizer.encode(prompt)
    space = "" if prompt[-1:].isspace() else " "
    whole = tokenizer.encode(f"{prompt}{space}{label}")
    if len(whole) <= len(start) or not np.array_equal(whole[: len(start)], start):
        raise ConfigError(
            f"label-words: {label!r} melts into the prompt's end {prompt!r} when it is tokenised; "
            "end the prompt in a letter or a mark, without a space"
        )
    return tuple(whole[len(start) :].tolist())
