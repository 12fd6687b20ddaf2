"""Classification: a model scores each class, by its head or by the logit of the class's word."""

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
from shared.config.sections import DataSettings
from shared.data.documents import Documents
from shared.data.examples import Examples, examples_with_labels
from shared.models.model import LanguageModel
from shared.tasks.class_names import check_head_order
from shared.tasks.task import TASKS
from shared.tasks.verbaliser import Verbaliser

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Classification:
    """The loss is the cross-entropy of the classes.

    A row is a class, then the tokens of a text, then -1 up to the length of the longest text.
    """

    classes: int
    encode: Callable[[str, int], Ids]  # (text, most) -> at most so many tokens
    logits: Callable[[nn.Module, Tensor, Tensor], Tensor]  # (module, tokens, lengths) -> (B, k)

    def examples(self, documents: Documents, length: int) -> Examples:
        """Make an example of each document; tokens beyond ``length`` are cut off."""
        return examples_with_labels(documents, self.classes, lambda text: self.encode(text, length))

    def loss(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean cross-entropy of the classes of rows (B, 1 + T), a float64 scalar."""
        return self.each(module, rows).mean()

    def each(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Cross-entropy of each example's class, (B,) float64."""
        return F.cross_entropy(self._logits(module, rows), rows[:, 0], reduction="none").double()

    def outcome(self, module: nn.Module, rows: Tensor) -> EvalSums:
        """Loss, and the confusion matrix of the classes with the largest logits."""
        logits = self._logits(module, rows)
        total = F.cross_entropy(logits, rows[:, 0], reduction="none").sum(dtype=torch.float64)
        choices = logits.argmax(1).cpu().numpy()
        confusion = confusion_of(rows[:, 0].cpu().numpy(), choices, self.classes)
        return EvalSums(float(total), len(rows), confusion)

    def _logits(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Logits (B, k) in float32; padding that all texts of a batch share is not computed."""
        lengths = (rows[:, 1:] >= 0).sum(1)
        return self.logits(module, rows[:, 1 : 1 + int(lengths.max())], lengths).float()


@TASKS.register("classification")
def classification(config: Config, model: LanguageModel) -> Classification:
    """Classify by the model's head, or else by the words of ``label-words`` after ``prompt``.

    Raises:
        ConfigError: fewer than two words, words that begin alike, or another number or order than
            the head has classes.
    """
    words = label_words(config.data)
    if not model.has_head:
        verbaliser = Verbaliser.of(model.tokenizer, config.data.prompt, words)
        return Classification(len(words), verbaliser.encode, verbaliser.logits)
    outputs = int(getattr(model.module.config, "num_labels", 0))
    if outputs != len(words):
        raise ConfigError(
            f"label-words: {outputs} expected, since the head of {model.name!r} has as many "
            f"classes, got {list(words)}"
        )
    check_head_order(model.module.config, words, model.name)
    return Classification(len(words), model.tokenizer.sequence, head_logits(model.tokenizer.pad))


def label_words(settings: DataSettings) -> tuple[str, ...]:
    """The classes' words in the order of their numbers.

    Raises:
        ConfigError: fewer than two, or one twice.
    """
    words = tuple(word.strip() for word in settings.label_words.split(",") if word.strip())
    if len(words) < 2 or len(set(words)) != len(words):
        raise ConfigError(
            "label-words: a word for each class expected, with commas, in the order of the "
            f"classes' numbers, such as 'terrible, great'; got {settings.label_words!r}"
        )
    return words


def head_logits(pad: int) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """Make the function that computes a head's logits; ``pad`` fills rows after their texts."""

    def logits(module: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
        is_text = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        any_module: Any = module
        more = {"use_cache": False} if "use_cache" in signature(module.forward).parameters else {}
        scores: Tensor = any_module(
            torch.where(is_text, tokens, pad),
            attention_mask=is_text.long(),
            return_dict=True,
            **more,
        ).logits
        return scores

    return logits
