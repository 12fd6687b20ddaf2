"""Classification: a model scores each class, by its head or by the logit of the class's word."""

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from shared.features.labelled_texts import LabelledTexts, texts_of
from shared.features.readout import LinearBatch
from shared.features.readout_logits import ReadoutLogits, readout_logits
from shared.generation.more_prompts import MorePrompts
from shared.generation.prompt_frame import CHAT, prompt_frame
from shared.likelihood.continuations import reads_trees
from shared.models.model import LanguageModel
from shared.tasks.class_names import check_head_order
from shared.tasks.label_scores import whole_labels
from shared.tasks.task import TASKS
from shared.tasks.verbaliser import Verbaliser

CLASSIFICATION = "classification"  # the name of the task
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Classification(LabelledTexts):
    """The loss is the cross-entropy of the classes.

    A row is a class, then the tokens of a text, then -1 up to the length of the longest text.
    """

    classes: int
    encode: Callable[[str, int], Ids]  # (text, most) -> at most so many tokens
    logits: Callable[[nn.Module, Tensor, Tensor], Tensor]  # (module, tokens, lengths) -> (B, k)
    readout: ReadoutLogits | None = None  # what gives the logits, if the model has a readout

    def examples(self, documents: Documents, length: int) -> Examples:
        """Make an example of each document; tokens beyond ``length`` are cut off."""
        return examples_with_labels(documents, self.classes, lambda text: self.encode(text, length))

    def loss(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean cross-entropy of the classes of rows (B, 1 + T), a float64 scalar."""
        return self.each(module, rows).mean()

    def each(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Cross-entropy of each example's class, (B,) float64."""
        return F.cross_entropy(self.predict(module, rows), rows[:, 0], reduction="none").double()

    def outcome(self, module: nn.Module, rows: Tensor) -> EvalSums:
        """Loss, and the confusion matrix of the classes with the largest logits."""
        logits = self.predict(module, rows)
        total = F.cross_entropy(logits, rows[:, 0], reduction="none").sum(dtype=torch.float64)
        choices = logits.argmax(1).cpu().numpy()
        confusion = confusion_of(rows[:, 0].cpu().numpy(), choices, self.classes)
        return EvalSums(float(total), len(rows), confusion)

    def linear_batch(self, module: nn.Module, rows: Tensor) -> LinearBatch:
        """Features and errors of rows (B, 1 + T), for the closed form of a readout's gradient.

        Raises:
            ConfigError: the model has no readout.
        """
        return self.require_readout().linear_batch(module, *texts_of(rows), rows[:, 0])

    def labels(self, rows: Tensor) -> Tensor:
        """The classes (B,) of rows."""
        return rows[:, 0]

    def predict(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Logits (B, k) in float32; padding that all texts of a batch share is not computed."""
        return self.logits(module, *texts_of(rows)).float()


@TASKS.register(CLASSIFICATION)
def classification(config: Config, model: LanguageModel) -> Classification:
    """Classify by the model's head, or else by the words of ``label-words`` after ``prompt``.

    Raises:
        ConfigError: fewer than two words, words that cannot be told apart, or another number or
            order than the head has classes.
    """
    words = label_words(config.data)
    if not model.has_head:
        return _by_words(config, model, words)
    if config.answer.prompt_form == CHAT:
        raise ConfigError(
            f"prompt-form = chat: a causal language model expected, got {model.name!r}, whose head "
            "reads no prompt; leave it out"
        )
    outputs = int(getattr(model.module.config, "num_labels", 0))
    if outputs != len(words):
        raise ConfigError(
            f"label-words: {outputs} expected, since the head of {model.name!r} has as many "
            f"classes, got {list(words)}"
        )
    check_head_order(model.module.config, words, model.name)
    readout = readout_logits(model, config, ())
    logits = readout or head_logits(model.tokenizer.pad)
    return Classification(len(words), model.tokenizer.sequence, logits, readout)


def _by_words(config: Config, model: LanguageModel, words: tuple[str, ...]) -> Classification:
    """Classify by what a causal model says after the prompt."""
    frame = prompt_frame(model.tokenizer, config.data.prompt, config.answer.prompt_form)
    prompts = MorePrompts.of(config, model, frame)
    if labels := whole_labels(frame, config.data.label_scoring, words):
        empty = Verbaliser.of(model.tokenizer, frame, ())
        verbaliser = replace(empty, reserve=labels.longest - 1)
        reads_trees(model.module)  # tried now, at parameters that nobody has moved
        readout = readout_logits(model, config, (), labels, prompts)
        return Classification(len(words), verbaliser.encode, readout or labels, readout)
    verbaliser = Verbaliser.of(model.tokenizer, frame, words)
    readout = readout_logits(model, config, verbaliser.words, prompts=prompts)
    return Classification(len(words), verbaliser.encode, readout or verbaliser.logits, readout)


def label_words(settings: DataSettings) -> tuple[str, ...]:
    """The classes' words in the order of their numbers.

    As in a CSV file, a class whose name has a comma stands in quotation marks.

    Raises:
        ConfigError: fewer than two, or one twice.
    """
    cells = next(csv.reader([settings.label_words], skipinitialspace=True), [])
    words = tuple(cell.strip() for cell in cells if cell.strip())
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
