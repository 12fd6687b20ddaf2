"""Prompt and verbaliser: a causal model chooses among the classes' words after a prompt.

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
    """Tokens around a text, and the first token of each class's word, which tells them apart."""

    tokenizer: Tokenizer
    before: Ids
    after: Ids
    words: tuple[int, ...]  # (k,)

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompt: str, words: tuple[str, ...]) -> "Verbaliser":
        """From a prompt with ``{text}`` in it and the words that may follow.

        Raises:
            ConfigError: no place for the text, or words that begin with the same token.
        """
        before, place, after = prompt.partition(TEXT)
        if not place:
            raise ConfigError(f"prompt: a text with {TEXT} in it expected, got {prompt!r}")
        firsts = tuple(first_token(tokenizer, after, word) for word in words)
        if len(set(firsts)) != len(words):
            told = ", ".join(f"{w!r}: {f}" for w, f in zip(words, firsts, strict=True))
            raise ConfigError(
                f"label-words whose first tokens differ after the prompt {prompt!r} expected, got "
                f"{told}; choose other words (with a tokenizer of bytes, end the prompt in a space)"
            )
        return cls(tokenizer, tokenizer.encode(before), tokenizer.encode(after), firsts)

    def encode(self, text: str, length: int) -> Ids:
        """The prompt with as much of the text's beginning as ``length`` tokens leave room for.

        Raises:
            ConfigError: the prompt leaves no room at all.
        """
        room = length - len(self.before) - len(self.after)
        if room < 1:
            raise ConfigError(
                f"block-size above {length - room} expected, as long is the prompt; got {length}"
            )
        return np.concatenate([self.before, self.tokenizer.encode(text)[:room], self.after])

    def logits(self, module: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
        """What the model gives each word (B, k) after the last token of each text.

        Attention is causal, so what stands after a text is not seen by it.
        """
        filled = tokens.clamp(min=0)
        places, which = torch.unique(lengths - 1, return_inverse=True)
        any_module: Any = module
        if "logits_to_keep" in signature(any_module.forward).parameters:
            found: Tensor = any_module(filled, use_cache=False, logits_to_keep=places).logits
        else:
            found = any_module(filled, use_cache=False).logits[:, places]
        rows = torch.arange(len(tokens), device=tokens.device)
        return found[rows, which][:, list(self.words)]


def first_token(tokenizer: Tokenizer, prompt: str, word: str) -> int:
    """The token that a word begins with where it follows the end of a prompt, after a space."""
    start = tokenizer.encode(prompt)
    space = "" if prompt[-1:].isspace() else " "
    whole = tokenizer.encode(f"{prompt}{space}{word}")
    if len(whole) <= len(start) or not np.array_equal(whole[: len(start)], start):
        raise ConfigError(
            f"label-words: {word!r} melts into the prompt's end {prompt!r} when it is tokenised; "
            "end the prompt in a letter or a mark, without a space"
        )
    return int(whole[len(start)])
