"""What a site measures of a batch: its loss, a score of its classes, or a user's reward.

A zeroth-order estimate needs numbers, not slopes, so that what is measured need not be
differentiable: MeZO on accuracy and F1 (Malladi et al. 2023, https://arxiv.org/abs/2305.17333,
section 3.3), and evolution strategies on rewards (Salimans et al. 2017,
https://arxiv.org/abs/1703.03864). Lower is better for every objective, so a run descends on
1 − accuracy, 1 − F1, or the negative reward. Evaluation reports loss and accuracy as before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from shared.base.errors import ConfigError
from shared.config.schema import Config
from shared.objectives.reward import Batch, is_reward, reward_of
from shared.objectives.scores import SCORES
from shared.tasks.task import Task

LOSS = "loss"


class Objective(Protocol):
    """A number of a batch, and of each of its examples; a task is one: its loss."""

    def loss(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean of a batch of the task's rows (B, n), a float64 scalar; one forward pass."""

    def each(self, module: nn.Module, rows: Tensor) -> Tensor:
        """The number of each example (B,), float64; one forward pass."""


@dataclass(frozen=True)
class MeasuredObjective:
    """Numbers of examples that some function computes from a batch."""

    name: str
    measure: Callable[[Batch], object]  # (B,) expected; lower is better
    task: Task

    def loss(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean over the examples, a float64 scalar."""
        return self.each(module, rows).mean()

    def each(self, module: nn.Module, rows: Tensor) -> Tensor:
        """The number of each example (B,), float64.

        Raises:
            ConfigError: the function gives something else than a number for each example.
        """
        numbers = self.measure(Batch(module, rows, self.task))
        if not isinstance(numbers, Tensor) or numbers.shape != rows.shape[:1]:
            raise ConfigError(
                f"objective {self.name!r}: a tensor ({len(rows)},) expected, a number for each "
                f"example of a batch; got {_describe(numbers)}"
            )
        if numbers.is_complex():
            raise ConfigError(f"objective {self.name!r}: real numbers expected, got complex ones")
        return numbers.double()


def objective_of(config: Config, task: Task) -> Objective:
    """The objective of a run.

    Raises:
        ConfigError: a score of classes for a task without any, or no such function.
    """
    name = config.zo.objective
    if name == LOSS:
        return task
    if is_reward(name):
        return MeasuredObjective(name, reward_of(name), task)
    if not task.classes:
        raise ConfigError(
            f"objective {name!r} with task {config.data.task!r}: a task with classes expected; use "
            "loss, or a function module:function"
        )
    return MeasuredObjective(name, SCORES[name], task)


def check_objective(objective: Objective, module: nn.Module, rows: Tensor) -> None:
    """Evaluate a batch once, so that a wrong function is refused before the first round.

    Raises:
        ConfigError: as ``MeasuredObjective.each``, or a number is not finite.
    """
    if not isinstance(objective, MeasuredObjective) or not len(rows):
        return
    with torch.inference_mode():
        numbers = objective.each(module, rows)
    bad = int((~numbers.isfinite()).sum())
    if bad:
        raise ConfigError(
            f"objective {objective.name!r}: finite numbers expected of the untrained model, got "
            f"{bad} of {len(numbers)} that are not"
        )


def _describe(value: object) -> str:
    shape = f" {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return f"{type(value).__name__}{shape}"
