"""What a round says of the step: the size of its slopes, the signal in them, the fall of a batch.

All of it follows from what the ledger keeps of the round and of the one that took the last step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.ledger.reader import LedgerReader
from server.ledger.records import Contribution, SiteNumbers
from server.steps.rules import Agreement, Evidence
from shared.aggregation import fewest_replies, rule_of
from shared.config.schema import Config
from shared.estimation.forward_differences import without_bend
from shared.modes.mode import parameters_round
from shared.modes.step_rule import compares
from shared.optimizers.gradient import coefficients_of
from shared.protocol.entry import Entry

RESOLUTION = 2.0**-21  # of a loss: a predicted fall below is lost in float32's rounding of both
Sites = Mapping[int, SiteNumbers]  # by slot


def numbers_of(contributions: Sequence[Contribution]) -> dict[int, SiteNumbers]:
    """What the ledger will keep of replies that are about to be committed, by slot."""
    return {
        c.slot: SiteNumbers(c.examples, np.asarray(c.differences, np.float32), c.before, c.after)
        for c in contributions
    }


@dataclass(frozen=True)
class EvidenceReader:
    """Reads the evidence of a run's rounds, committed or about to be."""

    config: Config
    ledger: LedgerReader

    def of(self, entry: Entry, sites: Sites) -> Evidence:
        """The evidence of a round from its entry, whose rate does not count, and its sites."""
        c = self.config
        own = c.zo.seed_schedule == "independent"
        slopes = [self._slopes(site.differences) for site in sites.values()]
        return Evidence(
            energy=energy_of(entry, c.zo.eps, c.zo.queries),
            agreement=None if own or self._is_exact() else agreement_of(slopes),
            ratio=self._ratio(entry.round, sites) if compares(c) else None,
        )

    def _is_exact(self) -> bool:
        """Whether every round measures all examples of all sites: then nothing in u is noise."""
        return not self.config.zo.batch_size and not self.config.federation.clients_per_round

    def _slopes(self, differences: NDArray[np.float32]) -> NDArray[np.float64]:
        numbers = without_bend(self.config, differences.astype(np.float64))
        return coefficients_of(numbers, self.config.zo.eps, 1)

    def _ratio(self, round_: int, now: Sites) -> float | None:
        """Fall of the last step's batches / the fall that its slopes predicted; None: not known.

        The batches are those of the sites that measured the step, and its batch before and after.
        Falls and predictions are aggregated as the run's numbers are.
        """
        c, step = self.config, parameters_round(self.config, round_)
        if step < 1 or self.ledger.is_rewind(step):
            return None
        entry, then = self.ledger.entry(step), self.ledger.site_numbers(step)
        before = then if step == round_ - 1 else self.ledger.site_numbers(round_ - 1)
        falls = {
            slot: (was.before, was.before - site.after)
            for slot, site in now.items()
            if slot in then and (was := before.get(slot)) is not None
            if was.before is not None and site.after is not None
        }
        if len(falls) < max(1, fewest_replies(c)):
            return None
        weights = np.array([now[slot].examples for slot in falls], np.float64)
        predicted = [predict_fall(entry, then[slot].differences, c) for slot in falls]
        rows = np.array([[p, *falls[s]] for p, s in zip(predicted, falls, strict=True)])
        expected, loss, fall = (
            float(rule_of(c)(rows[:, column : column + 1], weights)[0]) for column in range(3)
        )
        return fall / expected if expected > RESOLUTION * abs(loss) else None


def energy_of(entry: Entry, eps: float, queries: int) -> float:
    """Σ slopes² / q over all numbers of an entry: the square of the way of a parameter, times q."""
    slopes = [coefficients_of(s.differences.astype(np.float64), eps, 1) for s in entry.slots]
    return float(sum(np.sum(each**2) for each in slopes)) / queries


def agreement_of(slopes: Sequence[NDArray[np.float64]]) -> Agreement | None:
    """How alike sites' slopes (K*q,) along shared directions are; None if there are not two.

    The product of two sites' slopes has the mean ‖∇L‖²: their noises are independent.
    """
    if len(slopes) < 2:
        return None
    table = np.array(slopes)  # (n, K*q)
    count, squares = len(table), float(np.sum(table**2))
    products = float(np.sum(table.sum(0) ** 2)) - squares  # over all pairs of different sites
    return Agreement(count, products / ((count - 1) * squares)) if squares else None


def predict_fall(entry: Entry, differences: NDArray[np.float32], config: Config) -> float:
    """First-order fall of a site's batch by a step of shared directions: rate·Σ s·m / q."""
    (slot,) = entry.slots
    eps, queries = config.zo.eps, config.zo.queries
    own = coefficients_of(differences.astype(np.float64), eps, 1)
    taken = coefficients_of(slot.differences.astype(np.float64), eps, 1)
    return entry.learning_rate * float(np.sum(own * taken)) / queries
