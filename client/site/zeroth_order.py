"""Loss differences: K steps of q queries each, along plain directions or along guided ones."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.config.schema import Config
from shared.data.examples import Examples, draw
from shared.estimation.guided import directions_along
from shared.estimation.two_point import radius, two_point, two_point_along
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
    """What one site measures in one round; the replica is as it was when it is done."""

    id: SiteId
    examples: Examples
    config: Config
    round: int
    losses: list[float] = field(default_factory=list)  # of every evaluation

    def measure(self, oracle: Oracle, rate: float, guide: Tensor | None) -> NDArray[np.float32]:
        """Differences (K*q,); costs 2Kq forward passes.

        Which examples are measured depends on (seed, slot, round, step) alone, so a round that is
        asked for again gives the same numbers.
        """
        if guide is not None:
            return self._along(oracle, guide)
        found: list[NDArray[np.float32]] = []
        flat, steps = oracle.replica.model.flat, self.config.local_steps
        saved = flat.clone() if steps > 1 else None
        try:
            for step in range(steps):
                found.append(self._step(oracle, step))
                if step + 1 < steps:
                    self._step_(oracle, self.keys(step), found[-1], rate)
        finally:
            if saved is not None:
                flat.copy_(saved)
        return np.concatenate(found)

    def _step(self, oracle: Oracle, step: int) -> NDArray[np.float32]:
        """Differences (q,) of one step, one direction after the other or some at a time."""
        keys, at_once = self.keys(step), self.config.parallel_queries
        if at_once == 1:
            loss = self._loss(oracle, step)
            with oracle.frozen.reuse():
                return two_point(loss, oracle.perturber, keys, self.config.eps)
        found = [
            self._together(oracle, step, slice(first, first + at_once), keys)
            for first in range(0, len(keys), at_once)
        ]
        return np.concatenate(found)

    def _together(
        self, oracle: Oracle, step: int, part: slice, keys: list[Key]
    ) -> NDArray[np.float32]:
        some, numbers = keys[part], range(*part.indices(len(keys)))
        fresh, first = self.config.query_data == "fresh", step * self.config.queries
        same = self.batch(step)
        blocks = torch.stack([self.batch(first + k) if fresh else same for k in numbers])
        device = oracle.replica.model.flat.device
        losses = oracle.parallel.losses(some, self.config.eps, blocks.to(device)).cpu()
        self.losses += losses.T.flatten().tolist()
        differences: NDArray[np.float32] = (losses[0] - losses[1]).numpy().astype(np.float32)
        return differences

    def _along(self, oracle: Oracle, guide: Tensor) -> NDArray[np.float32]:
        model, directions = oracle.replica.model, oracle.replica.directions
        lean = directions_along(self.config, model, directions, guide)
        step = radius(self.config.eps, model.layout)
        loss, keys = self._loss(oracle, 0), self.keys(0)
        with oracle.frozen.reuse():
            return two_point_along(loss, oracle.perturber, model, lean, keys, step)

    def keys(self, step: int) -> list[Key]:
        """The directions of a step, in the order of their numbers."""
        c = self.config
        slot = SHARED_SLOT if c.seed_schedule == "shared" else self.id.slot
        return direction_keys(c.seed, self.round, slot, step * c.queries, c.queries)

    def _loss(self, oracle: Oracle, step: int) -> Callable[[int], float]:
        """The loss of a query's batch, noted; both signs of a query see the same batch."""
        c = self.config
        fresh, same = c.query_data == "fresh", self.batch(step)

        def loss(query: int) -> float:
            batch = self.batch(step * c.queries + query) if fresh else same
            self.losses.append(oracle.loss(batch))
            return self.losses[-1]

        return loss

    def batch(self, number: int) -> Tensor:
        """The examples (B, T) of a step, or of a query where each has its own."""
        c = self.config
        size = c.zo_batch_size * (c.queries if c.query_data == "shared" else 1)
        key = query_batch_key(c.seed, self.round, self.id.slot, number)
        rows = draw(key, len(self.examples), size)
        return torch.from_numpy(self.examples.batch(rows))

    def _step_(
        self, oracle: Oracle, keys: list[Key], differences: NDArray[np.float32], rate: float
    ) -> None:
        c = self.config
        scale = -rate / (2 * c.eps * c.queries)
        scaled = [scale * float(value) for value in differences]
        rounding = rounding_key(c.seed, self.round, self.id.slot, keys[0].index)
        oracle.replica.drift_(keys, scaled, rounding)
