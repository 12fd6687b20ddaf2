"""Prompt and verbaliser: a causal model classifies by the logits of words after a prompt.

Schick & Schütze 2021, https://arxiv.org/abs/2001.07676; Gao et al. 2021,
https://arxiv.org/abs/2012.15723. The loss is over the classes' words alone, not the vocabulary.
"""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.base.errors import ConfigError
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
                f"{pairs}; choose other words (with tokens of bytes, end the prompt in a space)"
            )
        start = np.concatenate([tokenizer.start, tokenizer.encode(before)])
        return cls(tokenizer, start, tokenizer.encode(after), firsts)

    def encode(self, text: str, length: int) -> Ids:
        """The tokens of the prompt with the text in it, which is cut to ``length`` tokens in all.

        Raises:
            ConfigError: the prompt leaves no room for a text.
        """
        room = length - len(self.before) - len(self.after)
        if room < 1:
            raise ConfigError(
                f"block-size above {length - room} expected, the length of the prompt; got {length}"
            )
        return np.concatenate([self.before, self.tokenizer.encode(text)[:room], self.after])

    def logits(self, module: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The words' logits (B, k) after the last token of each text.

        Attention is causal, so the padding after a text does not change them.
        """
        filled = tokens.clamp(min=0)
        positions, which = torch.unique(lengths - 1, return_inverse=True)
        any_module: Any = module
        if "logits_to_keep" in signature(any_module.forward).parameters:
            scores: Tensor = any_module(filled, use_cache=False, logits_to_keep=positions).logits
        else:
            scores = any_module(filled, use_cache=False).logits[:, positions]
        rows = torch.arange(len(tokens), device=tokens.device)
        return scores[rows, which][:, list(self.words)]


def first_token(tokenizer: Tokenizer, prompt: str, word: str) -> int:
    """The first token of a word that follows the end of a prompt, after a space.

    Raises:
        ConfigError: the tokenizer joins the word with the prompt's end.
    """
    start = tokenizer.encode(prompt)
    space = "" if prompt[-1:].isspace() else " "
    whole = tokenizer.encode(f"{prompt}{space}{word}")
    if len(whole) <= len(start) or not np.array_equal(whole[: len(start)], start):
        raise ConfigError(
            f"label-words: {word!r} melts into the prompt's end {prompt!r} when it is tokenised; "
            "end the prompt in a letter or a mark, without a space"
        )
    return int(whole[len(start)])
