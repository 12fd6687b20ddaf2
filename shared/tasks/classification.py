"""Classification: a model gives each class a number, by its head or by how likely its word is."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from shared.base.errors import ConfigError
from shared.base.metrics import EvalSums, confusion_of
from shared.config.schema import Config
from shared.data.documents import Documents
from shared.data.examples import Examples, examples_with_labels
from shared.models.model import LanguageModel
from shared.tasks.task import TASKS
from shared.tasks.verbaliser import Verbaliser

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Classification:
    """The loss is the cross-entropy of the classes.

    A row is a class, then the tokens of a text, then -1 up to the length of the longest.
    """

    classes: int
    encode: Callable[[str, int], Ids]  # a text's tokens, at most so many
    logits: Callable[[nn.Module, Tensor, Tensor], Tensor]  # of tokens, -1 after; lengths: (B, k)

    def examples(self, documents: Documents, length: int) -> Examples:
        """One example for each document; what exceeds ``length`` tokens is cut off."""
        return examples_with_labels(documents, self.classes, lambda text: self.encode(text, length))

    def loss(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean cross-entropy of the classes."""
        return self.each(module, rows).mean()

    def each(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Cross-entropy of each example's class."""
        return F.cross_entropy(self._logits(module, rows), rows[:, 0], reduction="none").double()

    def outcome(self, module: nn.Module, rows: Tensor) -> EvalSums:
        """Loss, and which class was given the largest number."""
        logits = self._logits(module, rows)
        total = F.cross_entropy(logits, rows[:, 0], reduction="none").sum(dtype=torch.float64)
        choices = logits.argmax(1).cpu().numpy()
        found = confusion_of(rows[:, 0].cpu().numpy(), choices, self.classes)
        return EvalSums(float(total), len(rows), found)

    def _logits(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Logits (B, k) in float32; padding that all texts of the batch have is not computed."""
        lengths = (rows[:, 1:] >= 0).sum(1)
        return self.logits(module, rows[:, 1 : 1 + int(lengths.max())], lengths).float()


@TASKS.register("classification")
def classification(config: Config, model: LanguageModel) -> Classification:
    """With a head where the model has one, else by the words of ``label-words`` after ``prompt``.

    Raises:
        ConfigError: the words are not those of at least two classes, or cannot be told apart.
    """
    words = label_words(config)
    if not model.has_head:
        verbaliser = Verbaliser.of(model.tokenizer, config.prompt, words)
        return Classification(len(words), verbaliser.encode, verbaliser.logits)
    heads = int(getattr(model.module.config, "num_labels", 0))
    if heads != len(words):
        raise ConfigError(
            f"label-words: {heads} expected, since the head of {model.name!r} knows as many "
            f"classes, got {list(words)}"
        )
    return Classification(len(words), model.tokenizer.sequence, head_logits(model.tokenizer.pad))


def label_words(config: Config) -> tuple[str, ...]:
    """The classes' words in the order of their numbers.

    Raises:
        ConfigError: fewer than two, or one twice.
    """
    words = tuple(word.strip() for word in config.label_words.split(",") if word.strip())
    if len(words) < 2 or len(set(words)) != len(words):
        raise ConfigError(
            "label-words: a word for each class expected, with commas, in the order of the "
            f"classes' numbers, such as 'terrible, great'; got {config.label_words!r}"
        )
    return words


def head_logits(pad: int) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """The numbers of a sequence classifier's head; ``pad`` stands where a text is over."""

    def logits(module: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
        there = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        any_module: Any = module
        more = {"use_cache": False} if "use_cache" in signature(module.forward).parameters else {}
        found: Tensor = any_module(
            torch.where(there, tokens, pad), attention_mask=there.long(), return_dict=True, **more
        ).logits
        return found

    return logits
