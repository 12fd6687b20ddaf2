"""Measurements at a model before its first round: rounding of the loss, slopes, trial steps."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.config.schema import Config
from shared.optimizers.gradient import DenseGradient, Gradient, ZerothOrderGradient, coefficients_of
from shared.randomness.streams import (
    FIRST_PROBE,
    SHARED_SLOT,
    Key,
    probe_keys,
    rounding_key,
)
from shared.replica.stochastic_rounding import step_
from shared.training.oracle import Oracle

Numbers = NDArray[np.float64]
NOISE_POINTS, NOISE_ORDER = 7, 4  # evaluations along a line, and the differences that are taken
NOISE_STEP = 1e-4  # of the parameters' root mean square: smooth functions are polynomials there
MOST_SITES, MOST_PAIRS = 8, 256  # batches of a trial round, and directions times batches


@dataclass(frozen=True)
class Probe:
    """Measures with an oracle and leaves parameters and optimizer as they were, to the bit.

    Steps are measured on ``rows`` (n, …), and judged by their effect on ``other_rows`` (m, …).
    """

    config: Config
    oracle: Oracle
    rows: Tensor
    other_rows: Tensor

    def noise(self, lines: int = 2) -> float:
        """Standard deviation of the rounding error of the loss of one site's batch.

        Differences of order k of equally spaced values of a smooth function vanish, those of its
        errors do not (Moré and Wild 2011, "Estimating computational noise"). Costs 7 forward passes
        per line.
        """
        size = float(self.oracle.replica.model.flat.float().square().mean().sqrt())
        batch, variances = self.batch(0), []
        for key in self._keys(lines):
            points = range(-(NOISE_POINTS // 2), NOISE_POINTS // 2 + 1)
            with self.oracle.frozen.reuse():
                values = [self._loss_at(key, k * NOISE_STEP * size, batch) for k in points]
            differences = np.diff(np.array(values), NOISE_ORDER)
            scale = math.factorial(NOISE_ORDER) ** 2 / math.factorial(2 * NOISE_ORDER)
            variances.append(scale * float(np.mean(differences**2)))
        return math.sqrt(float(np.mean(variances)))

    def differences(self, eps: float, directions: int, batches: int = 1) -> Numbers:
        """L(θ+εz) − L(θ−εz) of some directions over some sites' batches (directions, batches)."""
        return np.array(
            [
                [self._difference(key, eps, number) for number in range(batches)]
                for key in self._keys(directions)
            ]
        )

    def estimate(self, eps: float, trial: int) -> Gradient:
        """The estimate of a round of the run: its directions over its sites' batches."""
        c = self.config
        sites = max(
            1,
            min(
                c.federation.clients_per_round or c.federation.num_clients,
                MOST_SITES,
                MOST_PAIRS // c.zo.queries,
            ),
        )
        own = c.zo.seed_schedule == "independent"
        keys = self._keys(c.zo.queries * sites if own else c.zo.queries, trial)
        first = (trial - 1) * sites  # every trial has batches of its own, as rounds do
        pairs = [(k, [i % sites] if own else range(sites)) for i, k in enumerate(keys)]
        pairs = [(k, [first + b for b in of]) for k, of in pairs]
        means = [float(np.mean([self._difference(k, eps, b) for b in of])) for k, of in pairs]
        each = [coefficients_of(difference, eps, 1) / len(keys) for difference in means]
        return ZerothOrderGradient(self.oracle.replica.directions, keys, each)

    def backpropagate(self) -> Gradient:
        """The gradient of all rows at once."""
        return DenseGradient(self.oracle.gradient(self.rows)[1])

    def after_step(self, gradient: Gradient, rate: float) -> float:
        """Loss of the other rows after one step of the run's optimizer, which is then undone."""
        with self._restore():
            self.step(gradient, rate)
            return self.oracle.loss(self.other_rows)

    def after_rounds(self, eps: float, rate: float, rounds: int) -> float:
        """The same after some rounds in a row, each measured at the parameters after the last."""
        with self._restore():
            for trial in range(1, rounds + 1):
                self.step(self.estimate(eps, trial), rate)
            return self.oracle.loss(self.other_rows)

    def step(self, gradient: Gradient, rate: float) -> None:
        """One step of the run's optimizer, which is not undone."""
        replica = self.oracle.replica
        rounding = rounding_key(self.config.training.seed, 1, SHARED_SLOT, FIRST_PROBE)
        step_(replica.optimizer, replica.model.flat, gradient, rate, rounding)
        replica.model.layout.clear_padding_(replica.model.flat)

    @contextmanager
    def _restore(self) -> Iterator[None]:
        replica = self.oracle.replica
        flat = replica.model.flat.clone()
        state = {name: value.clone() for name, value in replica.optimizer.state().items()}
        try:
            yield
        finally:
            replica.model.flat.copy_(flat)
            replica.optimizer.load_state(state)

    def batch(self, number: int) -> Tensor:
        """Rows of one site's batch, ``zo-batch-size`` of them or all; batches follow each other."""
        size = min(self.config.zo.batch_size or len(self.rows), len(self.rows))
        indices = (torch.arange(size) + number * size) % len(self.rows)
        return self.rows[indices]

    def _keys(self, count: int, trial: int = 0) -> list[Key]:
        return probe_keys(self.config.training.seed, count, trial)

    def _difference(self, key: Key, eps: float, number: int) -> float:
        batch = self.batch(number)
        with self.oracle.frozen.reuse():
            return self._loss_at(key, eps, batch) - self._loss_at(key, -eps, batch)

    def _loss_at(self, key: Key, scale: float, batch: Tensor) -> float:
        with self.oracle.perturber.at(key, scale):
            return self.oracle.loss(batch)


def split_examples(examples: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Split examples into two sets of at most ``most`` rows; both are the same if there is one."""
    if len(examples) < 2:
        return examples, examples
    return examples[::2][:most], examples[1::2][:most]


def rms(values: Sequence[float] | Numbers) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(np.asarray(values, float)))))
