"""Losses and metrics of a problem, with the interface of a task."""

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from shared.base.errors import ConfigError
from shared.base.metrics import EvalSums
from shared.data.documents import Documents
from shared.data.examples import Examples
from shared.problem.problem import Measure, Problem
from shared.problem.table import ExampleTable


@dataclass(frozen=True)
class ProblemTask:
    """The loss of a problem; a row of a batch is the number of an example."""

    app: str
    problem: Problem
    table: ExampleTable
    classes: int = 0

    @property
    def score_names(self) -> tuple[str, ...]:
        """The names of the problem's metrics."""
        return tuple(self.problem.metrics)

    def batch(self, module: nn.Module, rows: Tensor) -> Any:  # noqa: ANN401
        """The examples of rows (B, 1) on the module's device, floats in its parameters' dtype."""
        parameter = next(module.parameters())

        def move(value: Any) -> Any:  # noqa: ANN401
            if not isinstance(value, Tensor):
                return value
            dtype = parameter.dtype if value.is_floating_point() else value.dtype
            return value.to(parameter.device, dtype)

        return tree_map(move, self.table.batch(rows))

    def loss(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean loss of rows (B, 1), a float64 scalar.

        Raises:
            ConfigError: as ``each``; or a gradient is wanted of a loss that has none.
        """
        mean = self.each(module, rows).mean()
        if torch.is_grad_enabled() and not mean.requires_grad:
            raise ConfigError(
                f"app {self.app!r}: a loss with a gradient expected for backpropagation, but it "
                "depends on no trained parameter through differentiable functions: use mode zo"
            )
        return mean

    def each(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Loss of each example (B,), float64.

        Raises:
            ConfigError: the problem's function returns something else.
        """
        return self._measure("loss", self.problem.loss, module, rows)

    def outcome(self, module: nn.Module, rows: Tensor) -> EvalSums:
        """Sums of the losses and of every metric over rows (B, 1)."""
        total = float(self.each(module, rows).sum())
        sums = {
            name: float(self._measure(f"metric {name}", measure, module, rows).sum())
            for name, measure in self.problem.metrics.items()
        }
        return EvalSums(total, len(rows), sums=sums)

    def examples(self, documents: Documents, length: int) -> Examples:
        """Refuse documents: the examples of a problem are its own."""
        del documents, length
        self._refuse("its examples are its own, not documents")

    def predict(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Refuse to score classes: what a module returns is known to the problem alone."""
        del module, rows
        self._refuse("its loss is the objective: it has no logits that another could be made of")

    def labels(self, rows: Tensor) -> Tensor:
        """Refuse to name classes, as ``predict``."""
        del rows
        self._refuse("its loss is the objective: it has no labels that another could be made of")

    def _measure(self, what: str, measure: Measure, module: nn.Module, rows: Tensor) -> Tensor:
        numbers: object = measure(module, self.batch(module, rows))
        if not isinstance(numbers, Tensor) or numbers.shape != rows.shape[:1]:
            shape = f" {tuple(numbers.shape)}" if isinstance(numbers, Tensor) else ""
            raise ConfigError(
                f"app {self.app!r}: {what}: a tensor ({len(rows)},) expected, a number for each "
                f"example of the batch (reduction='none'); got {type(numbers).__name__}{shape}"
            )
        return numbers.double()

    def _refuse(self, reason: str) -> NoReturn:
        raise ConfigError(f"app {self.app!r}: {reason}")
