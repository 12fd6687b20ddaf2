"""Which sites caused a divergence: those that made the steps which a rewind undoes.

The ledger has every number of every site, and the length of every gradient that came, so this is a
question about the past. Under the mean, a site is to blame if its numbers were several times the
median site's in most of the undone rounds, and if it and its like made up most of those rounds'
steps. Honest sites that diverge together do so at about one size, and none of them is to blame.

A round's steps count in multiples of what its median site sent: so those of different rounds can be
added, and a loud site that is drawn in a few of the rounds is found too.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

    Sites that sent gradients are compared with one another, and so are those that only measured.

    Args:
        config: of the run.
        rounds: the contributions to each undone round.
    """
    if rule_of(config) is not mean:
        return None
    replied, loud = Counter[str](), Counter[str]()
    parts: dict[str, float] = defaultdict(float)
    for sites in (alike for each in rounds for alike in comparable(each)):
        sizes = relative_sizes(sites)
        weights = weights_of(config, sites)
        energies = (weights / weights.sum() * sizes) ** 2
        for site, size, energy in zip(sites, sizes, energies, strict=True):
            replied[site.site] += 1
            loud[site.site] += int(size > LOUD)
            parts[site.site] += energy
    names = tuple(sorted(name for name in replied if 2 * loud[name] > replied[name]))
    share = sum(parts[name] for name in names) / (sum(parts.values()) or 1.0)
    if not names or 2 * len(names) >= len(replied) or share < MOST_OF_STEP:
        return None
    return Culprits(names, share, len(replied) - len(names))


def comparable(sites: Sequence[Contribution]) -> list[list[Contribution]]:
    """A round's contributions of each kind, gradients and numbers, if enough are of that kind."""
    senders = [site for site in sites if site.length is not None]
    measured = [site for site in sites if not site.gradient]
    return [kind for kind in (senders, measured) if len(kind) >= FEWEST_SITES]


def relative_sizes(sites: Sequence[Contribution]) -> NDArray[np.float64]:
    """Sizes (n,) of contributions of one kind, as multiples of the median site's.

    One that has a gradient and differences along it is as loud as the louder of the two.
    """
    lengths = np.array([site.length or 0.0 for site in sites])
    measured = np.array([root_mean_square(site.differences) for site in sites])
    return np.maximum(_by_median(lengths), _by_median(measured))


def root_mean_square(numbers: NDArray[np.floating]) -> float:
    """Root of the mean square of some numbers (q,); 0 of none."""
    return float(np.sqrt(np.mean(numbers.astype(float) ** 2))) if len(numbers) else 0.0


def _by_median(sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    return sizes / (np.median(sizes) or 1.0)
