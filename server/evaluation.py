"""The server's evaluation: the mean loss over held-out examples."""

from dataclasses import replace

import torch
from torch import Tensor

from shared.config import Config
from shared.data.corpus import Corpus
from shared.learner import Learner
from shared.models import LanguageModel


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


def held_out(config: Config, model: LanguageModel) -> Tensor:
    """Examples that no site trains on: of ``eval-dataset``, or of ``dataset``."""
    if config.eval_dataset not in ("", config.dataset):
        config = replace(config, dataset=config.eval_dataset, max_samples=0, partition_by="")
    return Corpus.of(config, model).evaluation()
