"""What a round was worth: the signal in the sites' slopes, and what is each site's own.

Sites that measure along shared directions fill a table of slopes s (n sites, q directions). Each is
the slope of the common gradient and of the site's own deviation, by its batch and by its data:
sᵢₖ = zₖᵀg + zₖᵀdᵢ. For one direction, the product of two sites' slopes estimates ‖g‖², and the
variance over sites estimates ‖d‖² (a two-way analysis of variance without replicates). Means over
the directions estimate both, and the spread over them says how well. With directions of their own,
sites have no product in common: then ‖g‖² + ‖d‖² is all that can be told.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.ledger.reader import LedgerReader
from server.ledger.records import SiteNumbers
from shared.config.schema import Config
from shared.estimation.forward_differences import FEWEST, centre
from shared.modes.estimators import FORWARD, estimator_of
from shared.modes.mode import mode_of
from shared.optimizers.gradient import coefficients_of

WINDOW = 50  # newest rounds that a run's verdict is made of
CERTAIN = 2.0  # standard errors that a signal must be above zero
GAIN = 1.5  # own directions are worth naming from here on


@dataclass(frozen=True)
class RoundWorth:
    """Squared slopes along one direction of signs, and their standard errors."""

    signal: float  # ‖g‖²: what all sites have in common; an estimate may be negative
    signal_error: float
    noise: float  # ‖d‖² of one site: its batch, and how its data differ
    noise_error: float
    sites: float  # that were compared; of several rounds: their mean

    @property
    def noise_share(self) -> float:
        """The share of a site's squared slope that is its own, from 0 to 1."""
        total = max(self.signal, 0.0) + self.noise
        return self.noise / total if total > 0 else 0.0

    @property
    def gain_of_own_directions(self) -> float:
        """How far a round goes with directions of each site's own, against shared ones."""
        signal = max(self.signal, 0.0)
        total = signal + self.noise
        return (self.sites * signal + self.noise) / total if total > 0 else 1.0


def is_comparable(config: Config) -> bool:
    """Whether a run's sites measure along plain directions that they share."""
    mode = mode_of(config)
    is_plain = mode.measures and not mode.leans_on_gradient
    return is_plain and config.zo.seed_schedule == "shared" and config.zo.queries > 1


def worth_of(config: Config, sites: Iterable[SiteNumbers]) -> RoundWorth | None:
    """What a round was worth; None if no two sites measured along the same directions.

    Local steps after the first are at points of each site's own, and do not count.
    """
    rows = [_slopes(config, site) for site in sites if len(site.differences)]
    if not is_comparable(config) or len(rows) < 2:
        return None
    table = np.array(rows)  # (n, q)
    count, queries = table.shape
    signals = (table.sum(0) ** 2 - (table**2).sum(0)) / (count * (count - 1))
    noises = table.var(0, ddof=1)
    if estimator_of(config) == FORWARD and queries >= FEWEST:  # centring has made them larger
        signals, noises = (each * (queries - 1) / queries for each in (signals, noises))
    (signal, signal_error), (noise, noise_error) = map(_mean, (signals, noises))
    return RoundWorth(signal, signal_error, noise, noise_error, count)


def worth_of_round(config: Config, ledger: LedgerReader, round_: int) -> RoundWorth | None:
    """The same of a committed round."""
    return worth_of(config, ledger.site_numbers(round_).values()) if is_comparable(config) else None


def worth_of_run(config: Config, ledger: LedgerReader) -> RoundWorth | None:
    """The mean over the newest rounds; None if none of them can be compared."""
    last = ledger.last_round
    rounds = range(max(1, last - WINDOW + 1), last + 1)
    each = [w for r in rounds if (w := worth_of_round(config, ledger, r)) is not None]
    if not each:
        return None
    columns = zip(
        *((w.signal, w.signal_error, w.noise, w.noise_error, w.sites) for w in each), strict=True
    )
    signal, signal_error, noise, noise_error, sites = map(np.array, columns)
    return RoundWorth(
        float(signal.mean()),
        float(np.sqrt(np.sum(signal_error**2)) / len(each)),
        float(noise.mean()),
        float(np.sqrt(np.sum(noise_error**2)) / len(each)),
        float(sites.mean()),
    )


def verdict_of(worth: RoundWorth, config: Config) -> str:
    """What limits the rounds, and what would pay, in two sentences."""
    if not worth.signal and not worth.noise:
        return "Every slope is zero: no evaluation differed. A larger eps or batch would pay"
    whole = not config.zo.batch_size
    own = "data differ from the others'" if whole else "batch, and data that differ"
    start = f"{worth.noise_share:.0%} of a site's squared slope is its own ({own})"
    if worth.signal <= CERTAIN * worth.signal_error:
        remedy = "more sites in a round" if whole else "a larger zo-batch-size"
        return f"{start}. No common signal can be told from it: {remedy} or more queries would pay"
    ratio = worth.noise / (worth.sites * worth.signal)
    if ratio > 1:
        remedy = "more sites in a round" if whole else "a larger zo-batch-size"
        return f"{start}. In a round it is {ratio:.1f} times the signal: {remedy} would pay"
    gain = worth.gain_of_own_directions
    more = ""
    if gain >= GAIN:
        more = f", or seed-schedule = independent: {gain:.1f} times as far in a round"
    return f"{start}. The few directions limit a round: more queries would pay{more}"


def _slopes(config: Config, site: SiteNumbers) -> NDArray[np.float64]:
    """Slopes (q,) of a site's first step."""
    numbers = site.differences.astype(np.float64)
    if estimator_of(config) == FORWARD:  # whether or not the run takes its steps by such numbers
        numbers = centre(numbers, config.zo.queries)
    return coefficients_of(numbers[: config.zo.queries], config.zo.eps, 1)


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard error of values (q,)."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
