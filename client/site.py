"""The work of one data owner: how the loss changes along each direction, on its own shard."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from shared.estimators import two_point
from torch import Tensor

from shared.config import Config
from shared.data.blocks import Blocks, draw
from shared.directions import Key
from shared.learner import Learner
from shared.replica import SHARED_SLOT, keys_of
from shared.sites import SiteName
from shared.wire import Measured, Request


@dataclass(frozen=True)
class Site:
    """A name, its examples and how it measures; the replica it is handed stays as it is."""

    name: SiteName
    examples: Blocks
    config: Config

    @property
    def count(self) -> int:
        """Examples that this site holds."""
        return len(self.examples)

    def measure(self, learner: Learner, request: Request) -> Measured:
        """K steps of q queries each from the replica's parameters; costs 2Kq forward passes.

        Which examples are measured depends on (seed, slot, round, step) alone, so a round that is
        asked for again gives the same numbers.
        """
        started, losses = time.perf_counter(), []
        found: list[NDArray[np.float32]] = []
        flat = learner.replica.model.flat
        saved = flat.clone() if self.config.local_steps > 1 else None
        try:
            for step in range(self.config.local_steps):
                keys, batch = self._keys(request.round, step), self._batch(request.round, step)

                def loss(query: int, batch: Tensor = batch) -> float:
                    losses.append(learner.loss(batch))
                    return losses[-1]

                found.append(two_point(loss, learner.perturber, keys, self.config.eps))
                if saved is not None and step + 1 < self.config.local_steps:
                    self._step_(learner, keys, found[-1], request.learning_rate)
        finally:
            if saved is not None:
                flat.copy_(saved)
        return Measured(
            round=request.round,
            differences=np.concatenate(found),
            examples=self.count,
            loss=float(np.float32(np.mean(losses))),
            seconds=time.perf_counter() - started,
            digest=learner.replica.digest(),
        )

    def _keys(self, round_: int, step: int) -> list[Key]:
        c = self.config
        slot = SHARED_SLOT if c.seed_schedule == "shared" else self.name.slot
        return keys_of(c.seed, round_, slot, step * c.queries, c.queries)

    def _batch(self, round_: int, step: int) -> Tensor:
        c = self.config
        rows = draw(c.seed, self.name.slot, round_, step, self.count, c.zo_batch_size)
        return torch.from_numpy(self.examples.batch(rows))

    def _step_(
        self, learner: Learner, keys: list[Key], differences: NDArray[np.float32], rate: float
    ) -> None:
        c = self.config
        scale = -(c.local_learning_rate or rate) / (2 * c.eps * c.queries)
        learner.replica.directions.add_to_(
            learner.replica.model.flat, keys, [scale * float(value) for value in differences]
        )
