"""Models with their tokenizers, and the table of those that can be built without a download."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared.base.registry import Registry

CLASSIFIER = "ForSequenceClassification"  # how classes of models with a head end
UNLIMITED = 1 << 20  # tokens: for models that know no longest text


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def end(self) -> int:
        """The token after each document."""

    @property
    def pad(self) -> int:
        """The token that stands where a text is over; nothing looks at it."""

    @property
    def size(self) -> int:
        """How many tokens there are."""

    @property
    def identity(self) -> str:
        """Names what it does: of two that have one identity, each gives the other's tokens."""

    def encode(self, text: str) -> NDArray[np.int64]:
        """Tokens of a text; special tokens that are spelt out in it are text like any other."""

    def sequence(self, text: str, most: int) -> NDArray[np.int64]:
        """A text alone, with the special tokens that its model expects; at most ``most`` tokens."""

    def decode(self, tokens: NDArray[np.int64]) -> str:
        """Text of tokens, special ones included."""

    def save(self, folder: Path) -> None:
        """Write what ``AutoTokenizer.from_pretrained`` reads."""


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model, or an encoder with a head; in evaluation mode, without dropout."""

    name: str
    module: Any  # a transformers PreTrainedModel
    tokenizer: Tokenizer

    @property
    def positions(self) -> int:
        """The longest block that the model can read."""
        return int(getattr(self.module.config, "max_position_embeddings", 0) or UNLIMITED)

    @property
    def has_head(self) -> bool:
        """Whether the model gives numbers to classes, not to tokens."""
        return type(self.module).__name__.endswith(CLASSIFIER)

    def save(self, folder: Path) -> None:
        """Write a folder that transformers' ``Auto…`` classes load, tokenizer included.

        Adapters are merged into the layers that they adapt: nobody needs PEFT to load the model.
        """
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]
        module = self.module
        if any(".lora_" in name for name, _ in module.named_parameters()):
            from shared.models.adapters import merge_adapters

            module.save_pretrained(folder, state_dict=merge_adapters(module))
        else:
            module.save_pretrained(folder)
        self.tokenizer.save(folder)


# The argument is the seed of the initialisation.
MODELS: Registry[Callable[[int], LanguageModel]] = Registry("model", "shared.models")

# Logits (B, T, V) of blocks (B, T) in few torch calls, by the name of the module's class. For other
# classes the module itself is called, which gives the same numbers.
Forward = Callable[[Any, Tensor], Tensor]
FORWARDS: Registry[Forward] = Registry("forward", "shared.models")


def load_model(name: str, seed: int, labels: Sequence[str] = ()) -> LanguageModel:
    """Build a registered model, or load a packaged one, a local folder, or a name on a hub.

    With ``labels``, the names of classes, an encoder gets a head for them, or keeps the one that it
    has; a causal language model stays what it is.

    Raises:
        DataError: it cannot be had here; says what to download and where to put it.
    """
    from shared.models.hub import load
    from shared.models.packaged import PACKAGED

    if name in MODELS.names():
        return MODELS[name](seed)
    place = str(PACKAGED[name].folder()) if name in PACKAGED else name
    return load(name, place, seed, labels)


def model_names() -> list[str]:
    """All names that are neither folders nor on a hub."""
    from shared.models.packaged import PACKAGED

    return sorted([*MODELS.names(), *PACKAGED])
