"""Runs at each promise on the server's own data: the best of some learning rates, over seeds.

Noise and learning rate go together: the more noise, the smaller the rate that suits it. So each ε
gets its own, by the held-out loss of the first seed. The further seeds then run at that rate.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from dandelion.engines.local import run_local
from dandelion.privacy.plan import PlanRow
from server.ledger.reader import LedgerReader
from server.ledger.run_folder import LEDGER
from shared.base.files import STATE
from shared.config.privacy_section import LOCAL
from shared.config.schema import Config


@dataclass(frozen=True)
class Score:
    """What a run reached on held-out examples at its end."""

    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Trials:
    """Runs of one configuration in the local engine, at one promise after another."""

    config: Config
    folder: Path  # of run folders, and of secret and budget of virtual sites
    seeds: int = 1
    rates: Sequence[float] = ()  # learning rates to try; empty: that of the configuration

    def measure(self, row: PlanRow) -> PlanRow:
        """Train at a row's ε; return the row with the scores of the best rate.

        The seeds are that of the configuration and those after it.
        """
        first = self.config.training.seed
        rates = self.rates or [self.config.optimizer.rate]
        scores = {rate: self._train(row.epsilon, rate, first) for rate in rates}
        best = min(scores, key=lambda rate: scores[rate].loss)
        further = [self._train(row.epsilon, best, first + k) for k in range(1, self.seeds)]
        runs = [scores[best], *further]
        accuracies = tuple(each.accuracy for each in runs if each.accuracy is not None)
        losses = tuple(each.loss for each in runs)
        return replace(row, rate=best, losses=losses, accuracies=accuracies)

    def _train(self, epsilon: float, rate: float, seed: int) -> Score:
        own = {
            "output_dir": str(self.folder), "run_name": f"{epsilon:g}-{rate:g}-{seed}",
            "save_model": False, "learning_rate": rate, "seed": seed,
        }  # fmt: skip
        with own_state(self.folder / "state"):
            path = run_local(self.config.replace(**own, **privacy_of(self.config, epsilon)))
        with closing(LedgerReader.open(path / LEDGER)) as ledger:
            accuracy = ledger.scores().get("accuracy", [])
            return Score(ledger.evaluations()[-1].loss, accuracy[-1][1] if accuracy else None)


def privacy_of(config: Config, epsilon: float) -> dict[str, Any]:
    """Settings of a run that promises ε, or of the same without privacy.

    Without it, what only a private run uses would be refused.
    """
    if epsilon < inf:
        return {"privacy": LOCAL, "privacy_noise": 0.0, "privacy_epsilon": epsilon}
    plain = type(config.privacy)(site_loss=config.privacy.site_loss)
    names = {"mode": "privacy", "site_loss": "site_loss"}
    return {names.get(name, f"privacy_{name}"): value for name, value in vars(plain).items()}


@contextmanager
def own_state(folder: Path) -> Iterator[None]:
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
