"""Instruction tuning: a prompt is read, and only the tokens of its response are predicted.

Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3.5 (supervised fine-tuning).
"""

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.base.errors import ConfigError, DataError
from shared.base.metrics import EvalSums
from shared.config.schema import Config
from shared.data.conversations import turns_of
from shared.data.documents import Documents
from shared.data.examples import Examples, rows_of_groups
from shared.generation.chat import ChatForm, chat_form
from shared.models.model import LanguageModel
from shared.models.next_token import logits
from shared.tasks.scored_tokens import mark_scored, response_losses, targets_of, tokens_of
from shared.tasks.task import TASKS

LOG = logging.getLogger("dandelion")
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Instruction:
    """The loss is the cross-entropy of a response's tokens, its end included.

    Each example counts alike, whatever the length of its response. A row is as
    ``shared/tasks/scored_tokens.py`` says: tokens, those of the response marked.
    """

    form: ChatForm
    start: Ids  # the token that the model expects before any text, (1,) or (0,)
    packing: bool = False
    classes: int = 0

    def examples(self, documents: Documents, length: int) -> Examples:
        """Make an example of each conversation, of at most ``length`` tokens.

        A prompt that leaves no room for its response loses its first tokens. A response that is
        too long alone loses its last ones. Both are counted in the log.

        Raises:
            DataError: the documents are no conversations, or the template does not take one.
        """
        if documents.conversations is None:
            reason = f": {documents.no_conversations}" if documents.no_conversations else ""
            raise DataError(
                "documents with a prompt and a response expected, got texts alone"
                f"{reason}; task instruction needs them"
            )
        cuts = Cuts(length, self.start)
        rows = [cuts.fit(*self.form.encode(turns_of(text))) for text in documents.conversations]
        cuts.say(len(rows))
        return rows_of_groups(documents, rows, pack_to=length if self.packing else 0)

    def loss(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean over the rows (B, T) of the mean loss of each one's response, a float64 scalar."""
        return self.each(module, rows).mean()

    def each(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean loss of the response's tokens of each row, (B,) float64."""
        return response_losses(module, rows)

    def each_of_points(self, module: nn.Module, rows: Tensor, points: int) -> Tensor:
        """The same of the batches of several points, one after the other."""
        return response_losses(module, rows, points)

    def predict(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each, up to the end of the longest row."""
        return logits(module, tokens_of(rows)).float()

    def labels(self, rows: Tensor) -> Tensor:
        """The token after each (B, T) if it is of a response, else -100."""
        return targets_of(rows)

    def outcome(self, module: nn.Module, rows: Tensor) -> EvalSums:
        """Loss of the responses; there are no classes."""
        return EvalSums(float(self.each(module, rows).sum()), len(rows))


@dataclass
class Cuts:
    """Fits prompts and responses into rows of a length, and counts what is cut off."""

    length: int
    start: Ids
    prompts: int = 0
    responses: int = 0

    def fit(self, prompt: Ids, response: Ids) -> Ids:
        """One row of at most ``length`` tokens, with a token at least before the response."""
        first = prompt[: len(self.start)]
        kept = first if len(first) and np.array_equal(first, self.start) else prompt[:0]
        least = len(kept) + 1
        if len(response) > self.length - least:
            response, self.responses = response[: self.length - least], self.responses + 1
        room = self.length - len(response)
        if len(prompt) > room:
            prompt = np.concatenate([kept, prompt[len(prompt) - room + len(kept) :]])
            self.prompts += 1
        return mark_scored(prompt, response)

    def say(self, total: int) -> None:
        """Log how many were cut, if any."""
        if self.prompts or self.responses:
            LOG.warning(
                "block-size = %d: the prompts of %d of %d examples lose their first tokens, and "
                "%d responses their last ones; a larger block-size keeps them",
                self.length, self.prompts, total, self.responses,
            )  # fmt: skip


@TASKS.register("instruction")
def instruction(config: Config, model: LanguageModel) -> Instruction:
    """Make the task for a causal model.

    Raises:
        ConfigError: the model is a classifier.
    """
    refuse_classifier(config, model)
    return Instruction(chat_form(model.tokenizer), model.tokenizer.start, config.text.packing)


def refuse_classifier(config: Config, model: LanguageModel) -> None:
    """Refuse a model that scores classes.

    Raises:
        ConfigError: it does.
    """
    if model.has_head:
        raise ConfigError(
            f"task {config.data.task}: {config.model.name!r} is a classifier, a causal language "
            "model expected; or use task classification"
        )
