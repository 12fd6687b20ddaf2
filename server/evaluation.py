"""The server's evaluation: loss and scores over held-out examples."""

import torch
from torch import Tensor

from shared.learner import Learner
from shared.scores import Outcome


class Evaluation:
    """Evaluates the server's replica, always over the same examples."""

    def __init__(self, learner: Learner, examples: Tensor, batch_size: int) -> None:
        self._learner = learner
        self._batches = torch.split(examples, batch_size)  # rows of the task

    def __call__(self) -> Outcome:
        """What the model does on all held-out examples."""
        return sum(map(self._learner.outcome, self._batches), Outcome(0.0, 0))
