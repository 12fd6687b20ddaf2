"""Tasks: how documents become examples, and the loss and scores of these."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from shared.base.metrics import EvalSums
from shared.base.registry import Registry
from shared.config.schema import Config
from shared.data.documents import Documents
from shared.data.examples import Examples
from shared.models.model import LanguageModel


class Task(Protocol):
    """Examples, loss and scores; a batch is rows (B, n) of integers, as ``Examples`` gives them."""

    @property
    def classes(self) -> int:
        """The number of classes; 0: none."""

    def examples(self, documents: Documents, length: int) -> Examples:
        """Make examples of at most ``length`` tokens, those of a group beside each other.

        Raises:
            DataError: the documents hold no example for this task.
        """

    def loss(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean loss in nats of a batch, computed in float32: a float64 scalar; one forward pass."""

    def each(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean loss in nats of each example (B,), float64; one forward pass."""

    def predict(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Float32 logits of classes (B, k), or of each next token (B, T, V); one forward pass."""

    def labels(self, rows: Tensor) -> Tensor:
        """What ``predict`` should score highest: classes (B,), or next tokens (B, T), else -100."""

    def outcome(self, module: nn.Module, rows: Tensor) -> EvalSums:
        """Loss of a batch, and for a task with classes the confusion matrix; one forward pass."""


# The model has its tokenizer, and a head if the task names classes and the model is an encoder.
TASKS: Registry[Callable[[Config, LanguageModel], Task]] = Registry("task", "shared.tasks")


def task_of(config: Config, model: LanguageModel) -> Task:
    """Make the task of a run.

    Raises:
        ConfigError: settings that the task needs are missing, or the model does not fit it.
    """
    return TASKS[config.data.task](config, model)
