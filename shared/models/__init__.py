"""Models with their tokenizers, and the table of those that can be built without a download."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.registry import Registry


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def end(self) -> int:
        """The token after each document."""

    @property
    def size(self) -> int:
        """How many tokens there are."""

    def encode(self, text: str) -> NDArray[np.int64]:
        """Tokens of a text; special tokens that are spelt out in it are text like any other."""

    def decode(self, tokens: NDArray[np.int64]) -> str:
        """Text of tokens, special ones included."""

    def save(self, folder: Path) -> None:
        """Write what ``AutoTokenizer.from_pretrained`` reads."""


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in evaluation mode (no dropout), as transformers has it."""

    name: str
    module: nn.Module  # a transformers PreTrainedModel
    tokenizer: Tokenizer | None  # None: its own is not packaged, tokens must come ready-made

    @property
    def positions(self) -> int:
        """The longest block that the model can read."""
        config: Any = self.module.config
        return int(config.max_position_embeddings)

    def save(self, folder: Path) -> None:
        """Write a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load.

        Adapters are merged into the layers that they adapt: nobody needs PEFT to load the model.
        """
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]
        module: Any = self.module
        if any(".lora_" in name for name, _ in module.named_parameters()):
            from shared.models.adapters import merged

            module.save_pretrained(folder, state_dict=merged(module))
        else:
            module.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save(folder)


# The argument is the seed of the initialisation.
MODELS: Registry[Callable[[int], LanguageModel]] = Registry("model", "shared.models")

# Logits (B, T, V) of blocks (B, T) in few torch calls, by the name of the module's class. For other
# classes the module itself is called, which gives the same numbers.
Forward = Callable[[Any, Tensor], Tensor]
FORWARDS: Registry[Forward] = Registry("forward", "shared.models")


def load_model(name: str, seed: int) -> LanguageModel:
    """Build a registered model, or load a local folder or a name on the Hugging Face hub.

    Raises:
        DataError: it cannot be had here; says what to download and where to put it.
    """
    from shared.models.hub import load

    return MODELS[name](seed) if name in MODELS.names() else load(name)
