"""What a promise of (ε, δ) costs: noise for the numbers, and accuracy on the server's own data."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from client.privacy.example_differences import example_differences, root_mean_square_slopes
from dandelion.engines.local import run_local
from server.ledger.reader import LedgerReader
from server.ledger.run_folder import LEDGER
from shared.base.files import STATE
from shared.config.privacy_section import LOCAL
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
    loss: float | None = None  # held out, if a run was made
    accuracy: float | None = None


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


def plan_accuracy(config: Config, row: PlanRow, folder: Path) -> PlanRow:
    """Train a run with the privacy of a row in the local engine; return the row with its scores.

    Args:
        config: of the run; its data are the server's own, dealt to virtual sites.
        row: one of ``plan_noise``.
        folder: for the run folder.
    """
    # without privacy, what only a private run uses would be refused
    privacy: dict[str, Any] = {"privacy_clip": 0.0, "privacy_unit": "example"}
    if row.epsilon < inf:
        privacy = {"privacy": LOCAL, "privacy_epsilon": row.epsilon}
    own = {"output_dir": str(folder), "run_name": f"epsilon-{row.epsilon:g}", "save_model": False}
    with _own_state(folder / "state"):
        path = run_local(config.replace(**own, **privacy))
    with closing(LedgerReader.open(path / LEDGER)) as ledger:
        accuracy = ledger.scores().get("accuracy", [])
        loss = ledger.evaluations()[-1].loss
    last = accuracy[-1][1] if accuracy else None
    return PlanRow(row.epsilon, row.noise, row.rate_bits, row.share, loss, last)


@contextmanager
def _own_state(folder: Path) -> Iterator[None]:
    """Let virtual sites keep secret and budget in ``folder``: a trial pays for no real data."""
    before = os.environ.get(STATE)
    os.environ[STATE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[STATE]
        else:
            os.environ[STATE] = before


def draw_table(config: Config, examples: int, rows: Sequence[PlanRow]) -> Table:
    """The rows as a table; the batch's own deviation of a mean stands in its title."""
    batch, title = config.zo.batch_size, (
        f"{examples} examples at a site, batches of {config.zo.batch_size}, "
        f"{config.training.rounds} rounds, q = {config.zo.queries}, "
        f"delta {config.privacy.delta:g}"
    )  # fmt: skip
    own = f"beside {1 / sqrt(batch):.2g} of the batch's own"
    titles = ["epsilon", "privacy-noise", "rate", f"noise on a mean, in clips ({own})"]
    measured = any(row.loss is not None for row in rows)
    table = Table(*titles, *(["held-out loss", "accuracy"] if measured else []), title=title)
    for row in rows:
        cells = [f"{row.epsilon:g}", f"{row.noise:.3g}", f"1/{1 << row.rate_bits}"]
        scores = [
            "-" if row.loss is None else f"{row.loss:.4f}",
            "-" if row.accuracy is None else f"{row.accuracy:.1%}",
        ]
        table.add_row(*cells, f"{row.share:.2g}", *(scores if measured else []))
    return table
