"""Models with their tokenizers, and the table of those that can be built without a download."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared.base.errors import ConfigError
from shared.base.files import translate_tensor_errors
from shared.base.registry import Registry

CLASSIFIER = "ForSequenceClassification"  # the end of the class name of a model with a head
READOUT = "readout"  # a sub-module that reads kept features; it knows how to save itself
UNLIMITED = 1 << 20  # tokens: for a model whose configuration names no longest text


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def end(self) -> int:
        """The token after each document."""

    @property
    def pad(self) -> int:
        """The token that fills a row after the end of its text; no model attends to it."""

    @property
    def size(self) -> int:
        """The number of tokens."""

    @property
    def start(self) -> NDArray[np.int64]:
        """The token that its model expects before any text, (1,); (0,) if it expects none."""

    @property
    def identity(self) -> str:
        """A name of what it does: tokenizers of one identity give the same tokens."""

    def encode(self, text: str) -> NDArray[np.int64]:
        """The tokens (n,) of a text; special tokens that are spelt out in it are ordinary text."""

    def sequence(self, text: str, most: int) -> NDArray[np.int64]:
        """At most ``most`` tokens of one text, with the special tokens that its model expects."""

    def decode(self, tokens: NDArray[np.int64]) -> str:
        """The text of tokens (n,), special ones included."""

    def save(self, folder: Path) -> None:
        """Write what ``AutoTokenizer.from_pretrained`` reads."""


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model, or an encoder with a head; in evaluation mode, without dropout."""

    name: str
    module: Any  # a transformers PreTrainedModel, or a light module that can be made one
    tokenizer: Tokenizer
    state: Callable[[Any], dict[str, Tensor]] | None = None  # what ``save`` writes of the module

    @property
    def positions(self) -> int:
        """The number of tokens of the longest block that the model can read.

        Raises:
            ConfigError: the module is no model of transformers.
        """
        longest = getattr(self._pretrained.config, "max_position_embeddings", 0)
        return int(longest or UNLIMITED) - self._first_position()

    @property
    def has_head(self) -> bool:
        """Whether the model scores classes, not tokens.

        Raises:
            ConfigError: the module is no model of transformers.
        """
        return type(self._pretrained).__name__.endswith(CLASSIFIER)

    def save(self, folder: Path) -> None:
        """Write a folder that transformers' ``Auto…`` classes load, tokenizer included.

        A readout goes into files of its own beside the model's.

        Raises:
            ConfigError: the module is no model of transformers.
            OSError: the disk is full, or the folder cannot be written.
        """
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]
        module = to_transformers(self._pretrained)
        state = self.state(module) if self.state else None
        if (readout := getattr(module, READOUT, None)) is not None:
            whole = module.state_dict() if state is None else state
            state = {k: v for k, v in whole.items() if not k.startswith(f"{READOUT}.")}
        with translate_tensor_errors(folder):
            module.save_pretrained(folder, state_dict=state)
            if readout is not None:
                readout.save(folder)
        self.tokenizer.save(folder)

    def _first_position(self) -> int:
        """The first token's position: RoBERTa and its kin begin after that of the padding."""
        for name, part in self._pretrained.named_modules():
            if name.endswith("position_embeddings"):
                padding = getattr(part, "padding_idx", None)
                return 0 if padding is None else int(padding) + 1
        return 0

    def in_transformers(self) -> "LanguageModel":
        """The same model, whose module is transformers' own; it has the very same parameters."""
        return replace(self, module=to_transformers(self.module))

    @property
    def _pretrained(self) -> Any:  # noqa: ANN401
        if getattr(self.module, "config", None) is None:
            raise ConfigError(
                f"model {self.name!r}: a PreTrainedModel of transformers expected, "
                f"got {type(self.module).__name__}"
            )
        return self.module


def to_transformers(module: Any) -> Any:  # noqa: ANN401
    """Return what a light module is in transformers, or any other module itself.

    The two share their parameters: what writes them changes both.
    """
    light = getattr(module, "to_transformers", None)
    return module if light is None else light()


# The argument is the seed of the initialisation.
MODELS: Registry[Callable[[int], LanguageModel]] = Registry("model", "shared.models")

# Logits (B, T, V) of blocks (B, T) in few torch calls, by the name of the module's class. A module
# of another class is called itself, which gives the same numbers.
Forward = Callable[[Any, Tensor], Tensor]
FORWARDS: Registry[Forward] = Registry("forward", "shared.models")

# (module, blocks (B, T)) -> losses (B, T) of the token after each, 0 at the last; None if they are
# to be made of the module's logits.
TokenLosses = Callable[[Any, Tensor], Tensor | None]
