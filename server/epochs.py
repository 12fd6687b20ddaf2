"""How many rounds make so many passes over the sites' examples."""

import math
from dataclasses import replace

from shared.config import Config
from shared.data.corpus import Corpus
from shared.models import LanguageModel


def in_rounds(config: Config, model: LanguageModel) -> Config:
    """The configuration with ``epochs`` said as ``num-rounds``; as it is where there are none.

    Examples of a round are drawn anew, so a pass is one on average.
    """
    if not config.epochs:
        return config
    examples = len(Corpus.of(config, model).training)
    rounds = math.ceil(config.epochs * examples / examples_of_round(config))
    return replace(config, num_rounds=max(1, rounds), epochs=0.0)


def examples_of_round(config: Config) -> int:
    """Examples that all sites measure, or backpropagate, in one round."""
    c = config
    backpropagates = c.mode in ("fo", "fedavg")
    batch = c.bp_batch_size if backpropagates else c.zo_batch_size
    batches = 1 if backpropagates or c.query_data == "same" else c.queries
    return (c.clients_per_round or c.num_clients) * c.local_steps * batch * batches
