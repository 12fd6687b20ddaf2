"""Measurements at the model as it stands: the loss's rounding, slopes over eps, trial steps."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.config.schema import Config
from shared.optimizers.gradient import DenseGradient, Gradient, ZerothOrderGradient
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
    """Tries things out on a oracle and leaves parameters and optimizer as they were, to the bit.

    ``rows`` (n, …) are measured on, ``apart`` (m, …) judge steps that were taken from those.
    """

    config: Config
    oracle: Oracle
    rows: Tensor
    apart: Tensor

    def noise(self, lines: int = 2) -> float:
        """Standard deviation of the rounding error of the loss of one site's batch.

        Differences of order k of equally spaced values of a smooth function vanish, those of its
        errors do not (Moré and Wild 2011, "Estimating computational noise"). Costs 7 forward passes
        per line.
        """
        size = float(self.oracle.replica.model.flat.float().square().mean().sqrt())
        batch, found = self.batch(0), []
        for key in self._keys(lines):
            at = range(-(NOISE_POINTS // 2), NOISE_POINTS // 2 + 1)
            with self.oracle.frozen.reuse():
                values = [self._loss_at(key, k * NOISE_STEP * size, batch) for k in at]
            differences = np.diff(np.array(values), NOISE_ORDER)
            scale = math.factorial(NOISE_ORDER) ** 2 / math.factorial(2 * NOISE_ORDER)
            found.append(scale * float(np.mean(differences**2)))
        return math.sqrt(float(np.mean(found)))

    def differences(self, eps: float, directions: int, batches: int = 1) -> Numbers:
        """L(θ+εz) − L(θ−εz) of some directions over some sites' batches (directions, batches)."""
        return np.array(
            [
                [self._difference(key, eps, number) for number in range(batches)]
                for key in self._keys(directions)
            ]
        )

    def estimate(self, eps: float, trial: int) -> Gradient:
        """What a round of the run would measure: its directions over its sites' batches."""
        c = self.config
        sites = max(
            1, min(c.clients_per_round or c.num_clients, MOST_SITES, MOST_PAIRS // c.queries)
        )
        own = c.seed_schedule == "independent"
        keys = self._keys(c.queries * sites if own else c.queries, trial)
        first = (trial - 1) * sites  # every trial has batches of its own, as rounds do
        pairs = [(k, [i % sites] if own else range(sites)) for i, k in enumerate(keys)]
        pairs = [(k, [first + b for b in of]) for k, of in pairs]
        slopes = [np.mean([self._difference(k, eps, b) for b in of]) / 2 / eps for k, of in pairs]
        each = [float(slope) / len(keys) for slope in slopes]
        return ZerothOrderGradient(self.oracle.replica.directions, keys, each)

    def backpropagated(self) -> Gradient:
        """The gradient of all rows at once."""
        return DenseGradient(self.oracle.gradient(self.rows)[1])

    def after_step(self, gradient: Gradient, rate: float) -> float:
        """Loss of the rows apart after one step of the run's optimizer, which is then undone."""
        with self._undone():
            self._step(gradient, rate)
            return self.oracle.loss(self.apart)

    def after_rounds(self, eps: float, rate: float, rounds: int) -> float:
        """The same after some rounds in a row, each measured where the one before has led."""
        with self._undone():
            for trial in range(1, rounds + 1):
                self._step(self.estimate(eps, trial), rate)
            return self.oracle.loss(self.apart)

    def _step(self, gradient: Gradient, rate: float) -> None:
        replica = self.oracle.replica
        rounding = rounding_key(self.config.seed, 1, SHARED_SLOT, FIRST_PROBE)
        step_(replica.optimizer, replica.model.flat, gradient, rate, rounding)
        replica.model.layout.clear_padding_(replica.model.flat)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        replica = self.oracle.replica
        flat = replica.model.flat.clone()
        state = {name: value.clone() for name, value in replica.optimizer.state().items()}
        try:
            yield
        finally:
            replica.model.flat.copy_(flat)
            replica.optimizer.load_state(state)

    def batch(self, number: int) -> Tensor:
        """Rows for one site's batch: ``zo-batch-size`` of them, the numbers one after the other."""
        size = min(self.config.zo_batch_size, len(self.rows))
        places = (torch.arange(size) + number * size) % len(self.rows)
        return self.rows[places]

    def _keys(self, count: int, trial: int = 0) -> list[Key]:
        return probe_keys(self.config.seed, count, trial)

    def _difference(self, key: Key, eps: float, number: int) -> float:
        batch = self.batch(number)
        with self.oracle.frozen.reuse():
            return self._loss_at(key, eps, batch) - self._loss_at(key, -eps, batch)

    def _loss_at(self, key: Key, scale: float, batch: Tensor) -> float:
        with self.oracle.perturber.at(key, scale):
            return self.oracle.loss(batch)


def split_examples(examples: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Two sets of at most so many rows each, every other one; both are all where there is one."""
    if len(examples) < 2:
        return examples, examples
    return examples[::2][:most], examples[1::2][:most]


def rms(values: Sequence[float] | Numbers) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(np.asarray(values, float)))))
