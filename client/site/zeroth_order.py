"""Loss differences: K steps of q queries each, along plain directions or along guided ones."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.config.schema import Config
from shared.data.examples import Examples, draw
from shared.estimation.exact import exact_differences
from shared.estimation.guided import directions_along
from shared.estimation.two_point import radius, two_point, two_point_along
from shared.modes.mode import estimator_of
from shared.optimizers.gradient import coefficients_of
from shared.protocol.site_id import SiteId
from shared.randomness.streams import (
    SHARED_SLOT,
    Key,
    direction_keys,
    query_batch_key,
    rounding_key,
)
from shared.training.oracle import Oracle


@dataclass
class Queries:
    """The measurement of one site in one round; it leaves the replica as it was."""

    id: SiteId
    examples: Examples
    config: Config
    round: int
    losses: list[float] = field(default_factory=list)  # of every evaluation

    def measure(self, oracle: Oracle, rate: float, guide: Tensor | None) -> NDArray[np.float32]:
        """Return differences (K*q,); costs 2Kq forward passes.

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
        keys, at_once = self.keys(step), self.config.zo.parallel_queries
        if estimator_of(self.config) == "exact":
            return self._compute_exactly(oracle, step)
        if at_once == 1:
            loss = self._loss(oracle, step)
            with oracle.frozen.reuse():
                return two_point(loss, oracle.perturber, keys, self.config.zo.eps)
        parts = [
            self._measure_batched(oracle, step, slice(first, first + at_once), keys)
            for first in range(0, len(keys), at_once)
        ]
        return np.concatenate(parts)

    def _compute_exactly(self, oracle: Oracle, step: int) -> NDArray[np.float32]:
        """Differences (q,) of one step from the gradient's closed form; nothing is perturbed."""
        loss, gradient = oracle.linear_gradient(self.batch(step))
        self.losses.append(loss)
        directions, eps = oracle.replica.directions, self.config.zo.eps
        return exact_differences(directions, self.keys(step), gradient, eps)

    def _measure_batched(
        self, oracle: Oracle, step: int, part: slice, keys: list[Key]
    ) -> NDArray[np.float32]:
        """Differences of a slice of a step's directions, in one batched forward pass per sign."""
        some, numbers = keys[part], range(*part.indices(len(keys)))
        fresh, first = self.config.zo.query_data == "fresh", step * self.config.zo.queries
        same = self.batch(step)
        blocks = torch.stack([self.batch(first + k) if fresh else same for k in numbers])
        device = oracle.replica.model.flat.device
        losses = oracle.parallel.losses(some, self.config.zo.eps, blocks.to(device)).cpu()
        self.losses += losses.T.flatten().tolist()
        differences: NDArray[np.float32] = (losses[0] - losses[1]).numpy().astype(np.float32)
        return differences

    def _measure_along(self, oracle: Oracle, guide: Tensor) -> NDArray[np.float32]:
        """Differences (q,) along directions by a gradient (size,)."""
        model, directions = oracle.replica.model, oracle.replica.directions
        guided = directions_along(self.config.bp, model, directions, guide)
        step = radius(self.config.zo.eps, model.layout)
        loss, keys = self._loss(oracle, 0), self.keys(0)
        with oracle.frozen.reuse():
            return two_point_along(loss, oracle.perturber, model, guided, keys, step)

    def keys(self, step: int) -> list[Key]:
        """The keys of a step's directions (q,), in the order of their numbers."""
        c = self.config
        slot = SHARED_SLOT if c.zo.seed_schedule == "shared" else self.id.slot
        return direction_keys(c.training.seed, self.round, slot, step * c.zo.queries, c.zo.queries)

    def _loss(self, oracle: Oracle, step: int) -> Callable[[int], float]:
        """A function from a query's number to its batch's loss, which it also notes.

        Both signs of a query see the same batch.
        """
        c = self.config
        fresh, same = c.zo.query_data == "fresh", self.batch(step)

        def loss(query: int) -> float:
            batch = self.batch(step * c.zo.queries + query) if fresh else same
            self.losses.append(oracle.loss(batch))
            return self.losses[-1]

        return loss

    def batch(self, number: int) -> Tensor:
        """Draw the examples (B, T) of a step, or of a query if each has its own."""
        c = self.config
        if not c.zo.batch_size:
            return torch.from_numpy(self.examples.batch(np.arange(len(self.examples))))
        size = c.zo.batch_size * (c.zo.queries if c.zo.query_data == "shared" else 1)
        key = query_batch_key(c.training.seed, self.round, self.id.slot, number)
        rows = draw(key, len(self.examples), size)
        return torch.from_numpy(self.examples.batch(rows))

    def _step_(
        self, oracle: Oracle, keys: list[Key], differences: NDArray[np.float32], rate: float
    ) -> None:
        """Take one local step of plain SGD: parameters minus ``rate`` times the estimate."""
        c = self.config
        scale = coefficients_of(-rate, c.zo.eps, c.zo.queries)  # of a difference of 1
        scales = [scale * float(difference) for difference in differences]
        rounding = rounding_key(c.training.seed, self.round, self.id.slot, keys[0].index)
        oracle.replica.drift_(keys, scales, rounding)
