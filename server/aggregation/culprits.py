"""Which sites caused a divergence: those that made the steps which a rewind undoes.

The ledger has every number of every site, so this is a question about the past. Under the mean, a
site is to blame if its numbers were several times the median site's in most of the undone rounds,
and if it and its like made up most of those rounds' steps. Honest sites that diverge together do so
at about one size, and none of them is to blame.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from server.aggregation.outliers import FEWEST_SITES
from server.aggregation.weights import weights_of
from server.ledger.records import Contribution
from shared.aggregation import rule_of
from shared.aggregation.flower import mean
from shared.config.schema import Config

LOUD = 4.0  # times the median size of a round's numbers; honest sites reach it in single rounds
MOST_OF_STEP = 0.75  # share of the steps' squared length


@dataclass(frozen=True)
class Culprits:
    """Sites that made the undone steps, and their share of the steps' squared length."""

    sites: tuple[str, ...]
    share: float
    left: int  # sites that replied beside them


def find_culprits(config: Config, rounds: Iterable[Sequence[Contribution]]) -> Culprits | None:
    """The sites that caused a divergence; None if no minority of them did, or the rule withstands.

    Rounds of gradients do not count: the ledger has only their digests.

    Args:
        config: of the run.
        rounds: the contributions to each undone round.
    """
    if rule_of(config) is not mean:
        return None
    replied, loud, parts = Counter[str](), Counter[str](), Counter[str]()
    for sites in rounds:
        measured = [site for site in sites if len(site.differences)]
        if len(measured) < FEWEST_SITES:
            continue
        sizes = np.array([np.sqrt(np.mean(s.differences.astype(float) ** 2)) for s in measured])
        energies = (weights_of(config, measured) * sizes) ** 2
        for site, size, energy in zip(measured, sizes, energies, strict=True):
            replied[site.site] += 1
            loud[site.site] += int(size > LOUD * np.median(sizes))
            parts[site.site] += energy / (energies.sum() or 1.0)
    names = tuple(sorted(name for name in replied if 2 * loud[name] > replied[name]))
    share = sum(parts[name] for name in names) / (sum(parts.values()) or 1.0)
    if not names or 2 * len(names) >= len(replied) or share < MOST_OF_STEP:
        return None
    return Culprits(names, share, len(replied) - len(names))
