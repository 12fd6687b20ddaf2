"""How much each site counts: by its examples or equally, and never more than ``max-share``.

Nobody can check how many examples a site has. A site that claims 2³¹ of them would be the mean all
by itself, so a share is limited; what is cut off goes to the others, in proportion to theirs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.ledger.records import Contribution
from shared.config.schema import Config

EQUAL = "equal"  # value of the setting ``weights``


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
