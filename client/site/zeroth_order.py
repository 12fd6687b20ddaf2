"""Loss differences: K steps of q queries each, along plain directions or along guided ones."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.config.schema import Config
from shared.data.examples import Examples, draw
from shared.estimation.forward_differences import forward_differences, numbers_of, without_bend
from shared.estimation.guided import directions_along
from shared.estimation.two_point import radius, two_point, two_point_along
from shared.modes.estimators import FORWARD, estimator_of
from shared.modes.mode import parameters_round
from shared.optimizers.gradient import coefficients_of
from shared.protocol.site_id import SiteId
from shared.randomness.streams import (
    SHARED_SLOT,
    Key,
    direction_keys,
    query_batch_key,
    rounding_key,
)
from shared.training.oracle import EVALUATION_BATCH, Oracle


@dataclass
class Queries:
    """The measurement of one site in one round; it leaves the replica as it was."""

    id: SiteId
    examples: Examples
    config: Config
    round: int
    losses: list[float] = field(default_factory=list)  # their mean is what the site reports

    def measure(self, oracle: Oracle, rate: float, guide: Tensor | None) -> NDArray[np.float32]:
        """Return differences (K*q,); costs 2Kq forward passes, or K(q + 1).

        ``guide`` (size,) is the gradient that directions are tilted to; None: plain directions.
        The examples depend on (seed, slot, round, step) alone, so a repeated request gives the
        same numbers.
        """
        if guide is not None:
            return self._measure_along(oracle, guide)
        differences: list[NDArray[np.float32]] = []
        flat, steps = oracle.replica.model.flat, self.config.training.local_steps
        saved = flat.clone() if steps > 1 else None
        try:
            for step in range(steps):
                differences.append(self._measure_step(oracle, step))
                if step + 1 < steps:
                    self._step_(oracle, self.keys(step), differences[-1], rate)
        finally:
            if saved is not None:
                flat.copy_(saved)
        return np.concatenate(differences)

    def _measure_step(self, oracle: Oracle, step: int) -> NDArray[np.float32]:
        """Differences (q,) of one step, one direction after the other or some at a time."""
        c = self.config
        is_forward = estimator_of(c) == FORWARD
        if c.zo.parallel_queries > 1:
            measure = self._measure_forward_batched if is_forward else self._measure_batched
            return measure(oracle, step)
        loss, keys = self._loss(oracle, step), self.keys(step)
        with oracle.frozen.reuse():
            if not is_forward:
                return two_point(self._recorder(loss), oracle.perturber, keys, c.zo.eps)
            numbers, baseline = forward_differences(
                lambda: loss(0), oracle.perturber, keys, c.zo.eps
            )
        self.losses.append(baseline)
        return numbers

    def _measure_batched(self, oracle: Oracle, step: int) -> NDArray[np.float32]:
        """Differences (q,) of a step, some directions in a forward pass, each at both signs."""
        keys, at_once = self.keys(step), self.config.zo.parallel_queries
        parts: list[NDArray[np.float32]] = []
        for first in range(0, len(keys), at_once):
            some = keys[first : first + at_once]
            blocks = self._blocks(step, range(first, first + len(some)))
            losses = self._losses_at(oracle, [*some, *some], signs(len(some)), blocks + blocks)
            plus, minus = losses.reshape(2, -1)
            self.losses += losses.reshape(2, -1).T.reshape(-1).tolist()
            parts.append((plus - minus).astype(np.float32))
        return np.concatenate(parts)

    def _measure_forward_batched(self, oracle: Oracle, step: int) -> NDArray[np.float32]:
        """The same of forward differences; the baseline is one more row of the first pass."""
        keys, at_once = self.keys(step), self.config.zo.parallel_queries
        block, parts = self.batch(step), list[NDArray[np.float64]]()
        for first in range(0, len(keys), at_once):
            some, scales = keys[first : first + at_once], [1.0] * len(keys[first : first + at_once])
            if not first:
                some, scales = [*some, keys[0]], [*scales, 0.0]
            parts.append(self._losses_at(oracle, some, scales, [block] * len(some)))
        baseline = float(parts[0][-1])
        parts[0] = parts[0][:-1]
        self.losses.append(baseline)
        return numbers_of(np.concatenate(parts), baseline)

    def _losses_at(
        self, oracle: Oracle, keys: list[Key], signs: list[float], blocks: list[Tensor]
    ) -> NDArray[np.float64]:
        """Losses (P,) of each point's batch at θ + sign·εz, in as few passes as memory allows."""
        rows, device = torch.stack(blocks), oracle.replica.model.flat.device
        scales = [sign * self.config.zo.eps for sign in signs]
        if self.config.zo.batch_size:
            return oracle.parallel.at(keys, scales, rows.to(device)).cpu().numpy()
        losses = np.zeros(len(keys))
        for part in torch.split(rows, EVALUATION_BATCH, 1):
            means = oracle.parallel.at(keys, scales, part.to(device)).cpu().numpy()
            losses += means * (part.shape[1] / rows.shape[1])
        return losses

    def _blocks(self, step: int, queries: range) -> list[Tensor]:
        """The batch (B, T) of each of some queries of a step."""
        if self.config.zo.query_data != "fresh":
            return [self.batch(step)] * len(queries)
        first = step * self.config.zo.queries
        return [self.batch(first + query) for query in queries]

    def _measure_along(self, oracle: Oracle, guide: Tensor) -> NDArray[np.float32]:
        """Differences (q,) along directions by a gradient (size,)."""
        model, directions = oracle.replica.model, oracle.replica.directions
        guided = directions_along(self.config.bp, model, directions, guide)
        step = radius(self.config.zo.eps, model.layout)
        loss, keys = self._recorder(self._loss(oracle, 0)), self.keys(0)
        with oracle.frozen.reuse():
            return two_point_along(loss, oracle.perturber, model, guided, keys, step)

    def keys(self, step: int) -> list[Key]:
        """The keys of a step's directions (q,), in the order of their numbers."""
        c = self.config
        slot = SHARED_SLOT if c.zo.seed_schedule == "shared" else self.id.slot
        return direction_keys(c.training.seed, self.round, slot, step * c.zo.queries, c.zo.queries)

    def _loss(self, oracle: Oracle, step: int) -> Callable[[int], float]:
        """A function from a query's number to the loss of its batch.

        All signs of a query see the same batch.
        """
        same = self.batch(step)

        def loss(query: int) -> float:
            fresh = self.config.zo.query_data == "fresh"
            return self.evaluate(
                oracle, self._blocks(step, range(query, query + 1))[0] if fresh else same
            )

        return loss

    def _recorder(self, loss: Callable[[int], float]) -> Callable[[int], float]:
        """The same function, which notes each loss: their mean is what the site reports."""

        def record(query: int) -> float:
            self.losses.append(loss(query))
            return self.losses[-1]

        return record

    def loss_before(self, oracle: Oracle) -> float:
        """Loss here of the batch whose step is the next that the replica takes.

        The round's own baseline is that loss, unless something is stale and batches differ.
        """
        coming = parameters_round(self.config, self.round) + 1
        is_same = coming == self.round or not self.config.zo.batch_size
        if is_same and estimator_of(self.config) == FORWARD:
            return self.losses[0]
        return self._loss_of_round(oracle, coming)

    def loss_after(self, oracle: Oracle) -> float:
        """Loss here of the batch whose step is the last that the replica took."""
        return self._loss_of_round(oracle, parameters_round(self.config, self.round))

    def _loss_of_round(self, oracle: Oracle, round_: int) -> float:
        """Loss here of a round's batch, which is a pure function of the round: none is kept."""
        return self.evaluate(oracle, replace(self, round=round_).batch(0))

    def evaluate(self, oracle: Oracle, rows: Tensor) -> float:
        """Mean loss of a batch at the model's current parameters, whatever its size."""
        return oracle.loss(rows) if self.config.zo.batch_size else oracle.loss_of_all(rows)

    def batch(self, number: int) -> Tensor:
        """Draw the examples (B, T) of a step, or of a query if each has its own.

        All examples, in their order, if ``zo-batch-size`` is 0.
        """
        c, count = self.config, len(self.examples)
        size = c.zo.batch_size * (c.zo.queries if c.zo.query_data == "shared" else 1)
        key = query_batch_key(c.training.seed, self.round, self.id.slot, number)
        rows = draw(key, count, size) if size else np.arange(count)
        return torch.from_numpy(self.examples.batch(rows))

    def _step_(
        self, oracle: Oracle, keys: list[Key], differences: NDArray[np.float32], rate: float
    ) -> None:
        """Take one local step of plain SGD: parameters minus ``rate`` times the estimate."""
        c = self.config
        scale = coefficients_of(-rate, c.zo.eps, c.zo.queries)  # of a difference of 1
        centred = without_bend(c, differences.astype(np.float64)).astype(np.float32)
        scales = [scale * float(difference) for difference in centred]
        rounding = rounding_key(c.training.seed, self.round, self.id.slot, keys[0].index)
        oracle.replica.drift_(keys, scales, rounding)


def signs(count: int) -> list[float]:
    """The signs of ``count`` directions at +ε, then at −ε."""
    return [1.0] * count + [-1.0] * count
