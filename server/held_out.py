"""What the server evaluates on: examples that no site trains on."""

from dataclasses import replace

from torch import Tensor

from shared.data.corpus import Corpus
from shared.models import LanguageModel


def held_out(corpus: Corpus, model: LanguageModel) -> Tensor:
    """The held-out part of ``eval-dataset``, or of the data set that is trained on, as rows."""
    config = corpus.config
    if config.eval_dataset in ("", config.dataset):
        return corpus.evaluation()
    other = replace(
        config, dataset=config.eval_dataset, max_samples=0, partition_by="", data_part=""
    )
    return Corpus.of(other, model).evaluation()
