"""What a model does on examples that it was not trained on, batch after batch."""

import torch
from torch import Tensor

from shared.learner import Learner
from shared.scores import Outcome

BATCH = 16  # examples at once


def evaluated(learner: Learner, rows: Tensor) -> Outcome:
    """Loss and scores over all ``rows`` of the task, at the model's current parameters."""
    return sum(map(learner.outcome, torch.split(rows, BATCH)), Outcome(0.0, 0))
