"""How much each site counts: by its examples or equally, and never more than ``max-share``.

Nobody can check how many examples a site has. A site that claims 2³¹ of them would be the mean all
by itself, so a share is limited; what is cut off goes to the others, in proportion to theirs.
"""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.ledger.records import Contribution
from shared.config.schema import Config

LOG = logging.getLogger("dandelion")
EQUAL = "equal"  # value of the setting ``weights``
MEAN = "mean"  # value of the setting ``aggregation``; other rules do not weigh, or say how


def weights_of(config: Config, contributions: Sequence[Contribution]) -> NDArray[np.float64]:
    """The weights (n,) of a round's sites, as ``weights`` and ``max-share`` say.

    They are the numbers of examples if no share is above the limit.
    """
    federation = config.federation
    if federation.weights == EQUAL:
        return np.ones(len(contributions))
    examples = np.array([each.examples for each in contributions], np.float64)
    return limit_shares(examples, federation.max_share)


def limit_shares(weights: NDArray[np.float64], most: float) -> NDArray[np.float64]:
    """The weights (n,), the largest lowered so that none is more than ``most`` of their sum.

    Too few weights for that (n · most ≤ 1, as two with a limit of a half) stay as they are: sites
    that are alone or two cannot outvote one another.
    """
    if len(weights) * most <= 1 or weights.max() <= most * weights.sum():
        return weights
    limited = weights.copy()
    order = np.argsort(-weights, kind="stable")
    for count in range(1, len(weights)):
        rest = float(weights[order[count:]].sum())
        level = most * rest / (1 - count * most) if count * most < 1 else np.inf
        if weights[order[count]] <= level:  # the next one is within the limit
            limited[order[:count]] = level
            break
    return limited


class LimitNotice:
    """Says in the log, once for each site, that it counts less than its examples are.

    A site that really has most of the data is then heard too little, and the model is worse for it.
    """

    def __init__(self, config: Config) -> None:
        """Take the run's settings."""
        self._config = config
        self._said: set[str] = set()

    def say(self, contributions: Sequence[Contribution]) -> None:
        """Name the sites of a round that ``max-share`` limits, if they are new."""
        federation = self._config.federation
        if federation.aggregation != MEAN or federation.weights == EQUAL:
            return
        examples = np.array([each.examples for each in contributions], np.float64)
        limited = limit_shares(examples, federation.max_share)
        for number in np.flatnonzero(limited < examples).tolist():
            site = contributions[number].site
            if site in self._said:
                continue
            self._said.add(site)
            LOG.warning(
                "site %s has %.0f %% of the examples of the sites that replied and counts as "
                "%.0f %% of them (max-share = %g), since nobody can check its number; if you trust "
                "your sites, start the run with max-share = 1",
                site,
                100 * examples[number] / examples.sum(),
                100 * limited[number] / limited.sum(),
                federation.max_share,
            )
