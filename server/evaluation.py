"""The server's evaluation: the mean loss over held-out examples."""

import torch
from torch import Tensor

from shared.learner import Learner


class Evaluation:
    """Evaluates the server's replica, always over the same examples."""

    def __init__(self, learner: Learner, examples: Tensor, batch_size: int) -> None:
        self._learner = learner
        self._batches = torch.split(examples, batch_size)  # of (n, block)

    def __call__(self) -> float:
        """Mean next-token loss in nats over all held-out blocks."""
        total = count = 0.0
        for batch in self._batches:
            total += self._learner.loss(batch) * len(batch)
            count += len(batch)
        return total / count
