"""Numbers that no honest site measures, judged by those of the other sites of the round.

Under the mean, one site that sends 10⁹ is the step. Honest sites differ too: one may have data that
the model has not learned, or a rarer class. So the bound is a very wide one: MOST_RATIO times the
median over the sites, or times what the first round had if that was more, since the model may have
learned the data of most sites. A rule that withstands liars needs no bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from server.ledger.records import Contribution, Metrics
from shared.aggregation import rule_of
from shared.aggregation.flower import mean
from shared.base.deterministic_sums import norm
from shared.config.schema import Config
from shared.optimizers.gradient import coefficients_of

MOST_RATIO = 1000.0  # to what is typical; honest sites of one run differ by some 10
FEWEST_SITES = 3  # of two that disagree, nobody can say which is wrong

Decoder = Callable[[Contribution], Tensor]


@dataclass(frozen=True)
class Outlier:
    """A site whose numbers are out of all proportion, and by how much."""

    site: str
    detail: str


def find_outliers(
    config: Config,
    contributions: Sequence[Contribution],
    first: Metrics | None,
) -> list[Outlier]:
    """The sites of a round whose numbers or losses are beyond the bound; none but under the mean.

    Args:
        config: of the run.
        contributions: valid replies, with the lengths of their gradients.
        first: the metrics of the first round; None before it is committed.
    """
    if not are_compared(config, contributions):
        return []
    sizes = [length_of(config, each) for each in contributions]
    losses = [abs(each.loss or 0.0) for each in contributions]
    return [
        *_beyond("slopes", contributions, sizes, first.gradient_norm if first else 0.0),
        *_beyond("a loss", contributions, losses, abs(first.loss or 0.0) if first else 0.0),
    ]


def are_compared(config: Config, contributions: Sequence[Contribution]) -> bool:
    """Whether a round's replies are judged by one another: by the mean, if they are enough."""
    return rule_of(config) is mean and len(contributions) >= FEWEST_SITES


def measure_lengths(
    config: Config, contributions: Sequence[Contribution], decode: Decoder
) -> list[Contribution]:
    """The same contributions, with the lengths of their gradients if they will be compared.

    Args:
        config: of the run.
        contributions: valid replies.
        decode: the gradient (size,) of a contribution.

    Raises:
        GradientError: a gradient cannot be decoded.
    """
    if not are_compared(config, contributions):
        return list(contributions)
    return [
        replace(each, length=norm(decode(each))) if each.gradient else each
        for each in contributions
    ]


def length_of(config: Config, site: Contribution) -> float:
    """The length of the gradient that a reply claims: its own, or the largest of its slopes."""
    if site.length is not None:
        return site.length
    slopes = coefficients_of(site.differences.astype(np.float64), config.zo.eps, 1)
    return float(np.abs(slopes).max(initial=0.0))


def _beyond(
    what: str, sites: Sequence[Contribution], values: Sequence[float], first: float
) -> list[Outlier]:
    """The sites whose value is MOST_RATIO times as large as is typical, now and in round 1."""
    middle = float(np.median(values))
    most = MOST_RATIO * max(middle, first)
    return [
        Outlier(
            site.site,
            f"{what} up to {most:.3g} expected, got {value:.3g}; the sites' median is {middle:.3g}",
        )
        for site, value in zip(sites, values, strict=True)
        if value > most > 0
    ]
