"""What each scope would bring: short trainings of each, in equal time, judged on other examples.

For every scope the gradient that two disjoint batches have in common is measured along a few
directions, and the curvature along them. Both say how far one round at the best rate lowers the
loss, and so what a forward pass is worth there. The scope is then trained on one half of the
server's examples for some seconds, with forward differences (or exact slopes) and a rate that
follows the falls. The other half says what that has brought, so noise that was learned counts for
nothing.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from server.preflight.probe import Probe, split_examples
from server.steps.rules import Evidence, StepSettings, StepState, auto
from shared.base.metrics import EvalSums
from shared.base.options import Value
from shared.config.schema import Config
from shared.estimation.exact import exact_differences
from shared.estimation.forward_differences import FEWEST, centre, forward_differences
from shared.modes.step_rule import movement_of
from shared.optimizers.gradient import ZerothOrderGradient, coefficients_of
from shared.randomness.streams import Key, probe_keys
from shared.training.oracle import Oracle, evaluate

Settings = Mapping[str, Value]
DIRECTIONS = 8  # along which signal and curvature are measured
MOST_EXAMPLES = 512  # of the server's, of which a half is trained on
BATCH = 16  # examples of an evaluation, if the run takes all that a site has
FEWEST_QUERIES = 16  # of a trial round: fewer make a bare estimate
MEMORY = 0.9  # share of the past in the usual slope
SIGNIFICANT = 2.0  # standard errors that a gain must exceed


@dataclass(frozen=True)
class ScopeRow:
    """What was measured of one scope."""

    scope: str
    settings: dict[str, Value]  # that the run would need for it
    parameters: int
    signal: float  # |gradient|² that two batches share, along DIRECTIONS; may be below 0
    curvature: float  # trace of the Hessian, along the same
    fall_per_pass: float  # of the loss by a forward pass over a batch, in the first round
    seconds_per_pass: float
    preparation: float  # seconds per example, before the first round: what is kept of it
    rounds: int  # of the trial
    passes: int  # of the trial
    seconds: float  # of the trial's rounds
    loss: tuple[float, float]  # held out, before and after
    accuracy: tuple[float, float] | None  # the same; None without classes
    gain: float  # fall of the held-out loss
    gain_error: float  # standard error of it, over the examples

    @property
    def pays(self) -> bool:
        """Whether the gain is more than chance."""
        return self.gain > SIGNIFICANT * self.gain_error


@dataclass(frozen=True)
class ScopeTrial:
    """One scope on the server's examples: half of them are trained on, half of them judge."""

    config: Config
    oracle: Oracle
    rows: Tensor  # (n, …) trained on
    other_rows: Tensor  # (m, …) that judge

    @classmethod
    def of(cls, config: Config, oracle: Oracle, examples: Tensor) -> "ScopeTrial":
        """A trial on held-out examples (n, …) of the server."""
        return cls(config, oracle, *split_examples(examples, MOST_EXAMPLES // 2))

    @cached_property
    def keeps(self) -> bool:
        """Whether all examples are measured at once, since that takes hardly longer than one."""
        return self.oracle.is_linear

    @cached_property
    def queries(self) -> int:
        """Directions of a trial round."""
        return max(self.config.zo.queries, FEWEST_QUERIES)

    def run(self, seconds: float) -> ScopeRow:
        """Measure, train for so long, judge; parameters and optimizer are not put back."""
        preparation = self._prepare()
        signal, curvature, per_pass, each = self._slopes()
        before, losses = evaluate(self.oracle, self.other_rows), self._losses()
        started = time.perf_counter()
        rounds = sum(1 for _ in self._rounds(started + seconds))
        spent = time.perf_counter() - started
        after, falls = evaluate(self.oracle, self.other_rows), losses - self._losses()
        return ScopeRow(
            scope=self.config.model.scope,
            settings={},
            parameters=self.oracle.replica.model.layout.parameters,
            signal=signal,
            curvature=curvature,
            fall_per_pass=per_pass,
            seconds_per_pass=each,
            preparation=preparation,
            rounds=rounds,
            passes=rounds * self._passes,
            seconds=spent,
            loss=(before.loss, after.loss),
            accuracy=_accuracies(before, after),
            gain=float(falls.mean()),
            gain_error=float(falls.std() / np.sqrt(len(falls))),
        )

    @property
    def _passes(self) -> int:
        """Forward passes of a round; a readout's are products."""
        return 1 if self.keeps else self.queries + 2

    def _prepare(self) -> float:
        """Compute what is kept of all examples; seconds for each of them."""
        started = time.perf_counter()
        everything = torch.cat([self.rows, self.other_rows])
        self.oracle.kept.prepare(everything)
        if self.keeps:
            evaluate(self.oracle, everything)
        return (time.perf_counter() - started) / len(everything)

    def _slopes(self) -> tuple[float, float, float, float]:
        """Signal, curvature, first fall by a pass, and seconds of a pass over a batch."""
        oracle, eps = self.oracle, self.config.zo.eps
        half = len(self.rows) // 2 if self.keeps else self._size
        batches = self.rows[:half], self.rows[half : 2 * half]
        table, bends = np.empty((DIRECTIONS, 2)), []
        started = time.perf_counter()
        for column, batch in enumerate(batches):
            middle = oracle.loss(batch)
            for row, key in enumerate(self._keys(0, DIRECTIONS)):
                with oracle.perturber.at(key, eps):
                    up = oracle.loss(batch)
                with oracle.perturber.at(key, -eps):
                    down = oracle.loss(batch)
                table[row, column] = (up - down) / (2 * eps)
                bends.append((up + down - 2 * middle) / eps**2)
        each = (time.perf_counter() - started) / (2 * (2 * DIRECTIONS + 1))
        signal = float(np.mean(table[:, 0] * table[:, 1]))
        curvature = float(np.mean(bends))
        return signal, curvature, first_fall(table, curvature, self.queries) / self._passes, each

    def _rounds(self, end: float) -> Iterator[int]:
        """Train until a time (perf_counter); yields the number of each round."""
        config, replica = self.config, self.oracle.replica
        probe = Probe(config, self.oracle, self.rows, self.other_rows)
        movement = movement_of(config, replica.model.layout.parameters)
        rule = StepSettings(movement, MEMORY, self.queries)
        state, number, ratio = StepState(), 0, None
        while time.perf_counter() < end:
            number += 1
            batch = self._batch(number)
            keys = self._keys(number, self.queries)
            slopes, baseline = self._measure(keys, batch)
            energy = float(np.mean(slopes**2))
            state = auto(state, Evidence(energy, None, ratio), rule)
            estimate = ZerothOrderGradient(replica.directions, keys, list(slopes / len(keys)))
            probe.step(estimate, state.taken)
            predicted = state.taken * energy
            ratio = (baseline - self.oracle.loss_of_all(batch)) / predicted if predicted else None
            yield number

    def _measure(self, keys: list[Key], batch: Tensor) -> tuple[np.ndarray, float]:
        """Slopes (q,) along directions, and the loss of the batch."""
        oracle, eps = self.oracle, self.config.zo.eps
        if oracle.is_linear:
            loss, gradient = oracle.linear_gradient(batch)
            numbers = exact_differences(oracle.replica.directions, keys, gradient, eps)
        else:
            numbers, loss = forward_differences(
                lambda: oracle.loss(batch), oracle.perturber, keys, eps
            )
        slopes = np.array(coefficients_of(numbers.astype(np.float64), eps, 1))
        return slopes if oracle.is_linear or len(keys) < FEWEST else centre(slopes, len(keys)), loss

    @property
    def _size(self) -> int:
        size = self.config.zo.batch_size or BATCH
        return max(1, min(size, len(self.rows) // 2))

    def _batch(self, number: int) -> Tensor:
        if self.keeps:
            return self.rows
        at = (torch.arange(self._size) + number * self._size) % len(self.rows)
        return self.rows[at]

    def _keys(self, trial: int, count: int) -> list[Key]:
        return probe_keys(self.config.training.seed, count, trial)

    def _losses(self) -> np.ndarray:
        parts = torch.split(self.other_rows, BATCH)
        return torch.cat([self.oracle.losses(part) for part in parts]).numpy()


def first_fall(slopes: np.ndarray, curvature: float, queries: int) -> float:
    """How far one round at the best rate lowers the loss, by slopes (k, 2) of two batches.

    A step of rate η along the estimate of q queries changes the loss by -η·G + η²/2·(T/q)·u, for
    G the squared norm of the common gradient, u that of a batch's, and T the trace of the Hessian.
    """
    common, whole = float(np.mean(slopes[:, 0] * slopes[:, 1])), float(np.mean(slopes**2))
    if common <= 0 or curvature <= 0:
        return 0.0
    return common**2 * queries / (2 * whole * curvature)


def _accuracies(before: EvalSums, after: EvalSums) -> tuple[float, float] | None:
    if not before.classes:
        return None
    return before.scores()["accuracy"], after.scores()["accuracy"]
