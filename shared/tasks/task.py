"""What a model is trained for: how documents become examples, and the loss and scores of these."""

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
    """Examples, loss and scores. A batch is rows (B, n) of integers, as ``examples`` made them."""

    @property
    def classes(self) -> int:
        """How many classes it has; 0: none."""

    def examples(self, documents: Documents, length: int) -> Examples:
        """One row per example, those of a group beside each other; at most ``length`` tokens each.

        Raises:
            DataError: the documents hold no example for this task.
        """

    def loss(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean loss in nats of a batch: computed in float32, a float64 scalar; one forward pass."""

    def each(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean loss in nats of each example (B,), float64; one forward pass."""

    def outcome(self, module: nn.Module, rows: Tensor) -> EvalSums:
        """Loss of a batch, and for a task with classes what was chosen; one forward pass."""


# The model comes with its tokenizer, and with a head where the task gave it one.
TASKS: Registry[Callable[[Config, LanguageModel], Task]] = Registry("task", "shared.tasks")


def task_of(config: Config, model: LanguageModel) -> Task:
    """The task of a run.

    Raises:
        ConfigError: the settings do not say all that the task needs, or the model cannot do it.
    """
    return TASKS[config.task](config, model)
