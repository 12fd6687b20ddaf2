"""What a promise of (ε, δ) costs in noise, and the table of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
import torch
from rich.table import Table

from client.privacy.example_differences import example_differences, root_mean_square_slopes
from shared.config.schema import Config
from shared.privacy.accounting import noise_for, rate_bits_of
from shared.randomness.streams import probe_keys
from shared.training.corpus import Corpus, load_evaluation
from shared.training.oracle import EVALUATION_BATCH, Oracle

MOST_MEASURED = 64  # of the server's examples, for the median of their slopes


@dataclass(frozen=True)
class PlanRow:
    """The cost of one ε."""

    epsilon: float  # infinite: no privacy
    noise: float  # in clips, on a batch's sum
    rate_bits: int
    share: float  # noise on the mean of a number, in privacy-clip
    rate: float = 0.0  # learning rate of the runs that were made
    losses: tuple[float, ...] = ()  # held out at the end of each run, one for each seed
    accuracies: tuple[float, ...] = ()


def plan_noise(config: Config, examples: int, epsilons: Sequence[float]) -> list[PlanRow]:
    """The noise that each ε needs for a run's rounds at a site of so many examples.

    Raises:
        ConfigError: no noise is enough, or ``dp-accounting`` is not installed.
    """
    bits, rows = rate_bits_of(config.zo.batch_size, examples), list[PlanRow]()
    for epsilon in epsilons:
        noise = 0.0
        if epsilon < inf:
            noise = noise_for(epsilon, config.privacy.delta, config.training.rounds, bits)
        share = noise * sqrt(config.zo.queries) / config.zo.batch_size
        rows.append(PlanRow(epsilon, noise, bits, share))
    return rows


def examples_of_site(config: Config) -> int:
    """How many examples a site of the run has, if all have equally many of the server's data."""
    corpus = Corpus.of(config, Oracle.of(config).language_model)
    return len(corpus.training) // config.federation.num_clients


def median_slope(config: Config) -> float:
    """The median root mean square slope of the server's own held-out examples, untrained.

    A good ``privacy-clip`` is half of it to all of it. Examples of sites must not be used for this:
    it would be a payment that nobody counts.
    """
    oracle = Oracle.of(config)
    corpus = Corpus.of(config, oracle.language_model)
    rows = load_evaluation(corpus, oracle.language_model)[:MOST_MEASURED]
    keys = probe_keys(config.training.seed, config.zo.queries)
    slopes = [
        root_mean_square_slopes(example_differences(oracle, config, part, keys), config.zo.eps)
        for part in torch.split(rows, EVALUATION_BATCH)
    ]
    return float(np.median(np.concatenate(slopes)))


def draw_table(config: Config, examples: int, rows: Sequence[PlanRow]) -> Table:
    """The rows as a table; the batch's own deviation of a mean stands in its title."""
    batch, title = config.zo.batch_size, (
        f"{examples} examples at a site, batches of {config.zo.batch_size}, "
        f"{config.training.rounds} rounds, q = {config.zo.queries}, "
        f"delta {config.privacy.delta:g}"
    )  # fmt: skip
    own = f"beside {1 / sqrt(batch):.2g} of the batch's own"
    titles = ["epsilon", "privacy-noise", "rate", f"noise on a mean, in clips ({own})"]
    measured = any(row.losses for row in rows)
    more = ["learning-rate", "held-out loss", "accuracy"] if measured else []
    table = Table(*titles, *more, title=title)
    for row in rows:
        cells = [f"{row.epsilon:g}", f"{row.noise:.3g}", f"1/{1 << row.rate_bits}"]
        scores = [
            f"{row.rate:g}", spread_text(row.losses, ".4f"), spread_text(row.accuracies, ".1%")
        ]  # fmt: skip
        table.add_row(*cells, f"{row.share:.2g}", *(scores if measured else []))
    return table


def spread_text(values: Sequence[float], form: str) -> str:
    """The median of runs, with the least and the greatest of several."""
    if not values:
        return "-"
    middle = f"{float(np.median(values)):{form}}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}} to {max(values):{form}})"
