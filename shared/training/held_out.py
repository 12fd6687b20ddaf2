"""What the server evaluates on: examples that no site trains on."""

from torch import Tensor

from shared.models.model import LanguageModel
from shared.training.corpus import Corpus, with_dataset


def held_out(corpus: Corpus, model: LanguageModel) -> Tensor:
    """The held-out part of ``eval-dataset``, or of the data set that is trained on, as rows."""
    config = corpus.config
    if config.eval_dataset in ("", config.dataset):
        return corpus.evaluation()
    return Corpus.of(with_dataset(config, config.eval_dataset), model).evaluation()
