"""Loss differences: K steps of q queries each, along plain directions or along guided ones."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.site.first_order import gradient_of_all
from shared.config.schema import Config
from shared.data.examples import Examples
from shared.estimation.exact import exact_differences
from shared.estimation.forward_differences import numbers_of, one_side, without_bend
from shared.estimation.guided import directions_along
from shared.estimation.two_point import (
    Point,
    both_sides,
    differences_of,
    evaluate_at,
    losses_along,
    radius,
)
from shared.modes.batches import query_rows
from shared.modes.estimators import EXACT, FORWARD, TWO_POINT, Estimator, estimator_at
from shared.modes.mode import parameters_round
from shared.optimizers.gradient import coefficients_of
from shared.protocol.site_id import SiteId
from shared.randomness.streams import (
    SHARED_SLOT,
    Key,
    direction_keys,
    rounding_key,
)
from shared.training.oracle import EVALUATION_BATCH, Oracle

Chunk = tuple[list[Key], list[float], list[Tensor]]  # keys, signs and batches of a forward pass


@dataclass
class Queries:
    """The measurement of one site in one round; it leaves the replica as it was."""

    id: SiteId
    examples: Examples
    config: Config
    round: int
    losses: list[float] = field(default_factory=list)  # their mean is what the site reports
    can_backpropagate: bool = True

    @property
    def estimator(self) -> Estimator:
        """How this site measures."""
        return estimator_at(self.config, self.can_backpropagate)

    def measure(self, oracle: Oracle, rate: float, guide: Tensor | None) -> NDArray[np.float32]:
        """Return differences (K*q,); costs K times what ``evaluations_of`` says.

        ``guide`` (size,) is the gradient that directions are tilted to; None: plain directions.
        The examples depend on (seed, slot, round, step) alone, so a repeated request gives the
        same numbers.
        """
        if guide is not None:
            return self._measure_along(oracle, guide)
        differences: list[NDArray[np.float32]] = []
        steps = self.config.training.local_steps
        with oracle.replica.keep() if steps > 1 else nullcontext():
            for step in range(steps):
                differences.append(self._measure_step(oracle, step))
                if step + 1 < steps:
                    self._step_(oracle, self.keys(step), differences[-1], rate)
        return np.concatenate(differences)

    def _measure_step(self, oracle: Oracle, step: int) -> NDArray[np.float32]:
        """Differences (q,) of one step, one direction after the other or some at a time."""
        c = self.config
        is_forward = self.estimator == FORWARD
        if self.estimator == EXACT:
            return self._compute_exactly(oracle, step)
        if c.zo.parallel_queries > 1:
            batched = self._measure_forward_batched if is_forward else self._measure_batched
            return batched(oracle, step)
        points = (one_side if is_forward else both_sides)(self.keys(step), c.zo.eps)
        rows = self._rows(step)

        def measure(own: Oracle, numbers: range) -> list[float]:
            def loss(query: int) -> float:
                return self.evaluate(own, rows(query))

            return [evaluate_at(points[n], loss, own.perturber) for n in numbers]

        losses = oracle.share_out(len(points), measure, lambda: self._passes(rows, points))
        self.losses += losses[:1] if is_forward else losses
        return numbers_of(np.array(losses[1:]), losses[0]) if is_forward else differences_of(losses)

    def _compute_exactly(self, oracle: Oracle, step: int) -> NDArray[np.float32]:
        """Differences (q,) of one step from the batch's gradient; nothing is perturbed."""
        rows = self.batch(step)
        at_once = oracle.is_linear or self.config.zo.batch_size > 0
        loss, gradient = oracle.gradient(rows) if at_once else gradient_of_all(oracle, rows)
        self.losses.append(loss)
        directions, eps = oracle.replica.directions, self.config.zo.eps
        return exact_differences(directions, self.keys(step), gradient, eps)

    def _measure_batched(self, oracle: Oracle, step: int) -> NDArray[np.float32]:
        """Differences (q,) of a step, some directions in a forward pass, each at both signs."""
        keys, at_once = self.keys(step), self.config.zo.parallel_queries
        chunks: list[Chunk] = []
        for first in range(0, len(keys), at_once):
            some = keys[first : first + at_once]
            blocks = self._blocks(step, range(first, first + len(some)))
            chunks.append(([*some, *some], signs(len(some)), blocks + blocks))
        parts: list[NDArray[np.float32]] = []
        for losses in self._losses_at(oracle, chunks):
            plus, minus = losses.reshape(2, -1)
            self.losses += losses.reshape(2, -1).T.reshape(-1).tolist()
            parts.append((plus - minus).astype(np.float32))
        return np.concatenate(parts)

    def _measure_forward_batched(self, oracle: Oracle, step: int) -> NDArray[np.float32]:
        """The same of forward differences; the baseline is one more row of the first pass."""
        keys, at_once = self.keys(step), self.config.zo.parallel_queries
        block, chunks = self.batch(step), list[Chunk]()
        for first in range(0, len(keys), at_once):
            some, scales = keys[first : first + at_once], [1.0] * len(keys[first : first + at_once])
            if not first:
                some, scales = [*some, keys[0]], [*scales, 0.0]
            chunks.append((some, scales, [block] * len(some)))
        parts = self._losses_at(oracle, chunks)
        baseline = float(parts[0][-1])
        parts[0] = parts[0][:-1]
        self.losses.append(baseline)
        return numbers_of(np.concatenate(parts), baseline)

    def _losses_at(self, oracle: Oracle, chunks: Sequence[Chunk]) -> list[NDArray[np.float64]]:
        """Losses (P,) of each chunk's batches at θ + sign·εz, in as few passes as memory allows."""

        def parts(number: int) -> tuple[Tensor, ...]:
            rows = torch.stack(chunks[number][2])  # (P, B, T)
            return torch.split(rows, self._most(rows.shape[1]), 1)

        def measure_chunk(own: Oracle, number: int) -> NDArray[np.float64]:
            (keys, signs, blocks), device = chunks[number], own.replica.model.flat.device
            scales, losses = [sign * self.config.zo.eps for sign in signs], np.zeros(len(keys))
            for part in parts(number):
                means = own.parallel.at(keys, scales, part.to(device)).cpu().numpy()
                losses += means * (part.shape[1] / len(blocks[0]))
            return losses

        return oracle.share_out(
            len(chunks),
            lambda own, numbers: [measure_chunk(own, number) for number in numbers],
            lambda: (part.flatten(0, 1) for k in range(len(chunks)) for part in parts(k)),
        )

    def _blocks(self, step: int, queries: range) -> list[Tensor]:
        """The batch (B, T) of each of some queries of a step."""
        if self.config.zo.query_data != "fresh":
            return [self.batch(step)] * len(queries)
        first = step * self.config.zo.queries
        return [self.batch(first + query) for query in queries]

    def _measure_along(self, oracle: Oracle, guide: Tensor) -> NDArray[np.float32]:
        """Differences (q,) along directions by a gradient (size,)."""
        step = radius(self.config.zo.eps, oracle.replica.model.layout)
        points, rows = both_sides(self.keys(0), step), self._rows(0)

        def measure(own: Oracle, numbers: range) -> list[float]:
            model, mine = own.replica.model, [points[n] for n in numbers]
            guided = directions_along(self.config.bp, model, own.replica.directions, guide)

            def loss(query: int) -> float:
                return self.evaluate(own, rows(query))

            return losses_along(loss, own.perturber, model, guided, mine)

        losses = oracle.share_out(len(points), measure, lambda: self._passes(rows, points))
        self.losses += losses
        return differences_of(losses)

    def keys(self, step: int) -> list[Key]:
        """The keys of a step's directions (q,), in the order of their numbers."""
        c = self.config
        slot = SHARED_SLOT if c.zo.seed_schedule == "shared" else self.id.slot
        return direction_keys(c.training.seed, self.round, slot, step * c.zo.queries, c.zo.queries)

    def _rows(self, step: int) -> Callable[[int], Tensor]:
        """A function from a query's number to its batch (B, T); all its points see the same one."""
        if self.config.zo.query_data == "fresh":
            return lambda query: self._blocks(step, range(query, query + 1))[0]
        same = self.batch(step)
        return lambda query: same

    def _passes(self, rows: Callable[[int], Tensor], points: Sequence[Point]) -> Iterator[Tensor]:
        """The rows of each forward pass that evaluates these points, without repetitions."""
        is_fresh = self.config.zo.query_data == "fresh"
        for query in range(points[-1].query + 1 if is_fresh else 1):
            batch = rows(query)
            yield from torch.split(batch, self._most(len(batch)))

    def _most(self, count: int) -> int:
        """Examples of one forward pass, of a batch of so many."""
        return count if self.config.zo.batch_size else EVALUATION_BATCH

    def loss_before(self, oracle: Oracle) -> float:
        """Loss here of the batch whose step is the next that the replica takes.

        The round's own baseline is that loss, unless something is stale and batches differ.
        """
        coming = parameters_round(self.config, self.round) + 1
        is_same = coming == self.round or not self.config.zo.batch_size
        if is_same and self.estimator != TWO_POINT:
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
        """The examples (B, T) of a step, or of a query if each has its own."""
        rows = query_rows(self.config, self.id.slot, self.round, number, len(self.examples))
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
