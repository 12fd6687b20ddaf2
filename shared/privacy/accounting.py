"""What rounds cost in (ε, δ), by privacy loss distributions; and the noise that a promise needs.

A round is a Gaussian mechanism on a batch into which every unit comes with probability p (Poisson).
Neighbours differ by one unit, added or removed. Events are composed by ``dp-accounting`` (Google;
privacy loss distributions after Koskela et al. 2020, https://arxiv.org/abs/1906.03049, and
Doroshenko et al. 2022), which the extra ``privacy`` installs.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import log, sqrt
from typing import Any, NamedTuple

from shared.base.errors import ConfigError
from shared.base.extras import import_extra

COUNTING = "a count of (epsilon, delta)"  # what needs dp-accounting
LARGEST_NOISE = 1e4
LEAST_NOISE = 0.25  # clips
ACCURACY = 1e-3  # of the ε that a calibrated noise costs, relative


class Rounds(NamedTuple):
    """Equal rounds: how many, their noise in clips, and 2^-rate_bits, the rate of their batches."""

    times: int
    noise: float
    rate_bits: int


def epsilon_of(rounds: Sequence[Rounds], delta: float) -> float:
    """The ε of rounds together; infinite if one of them has no noise.

    Raises:
        ConfigError: ``dp-accounting`` is not installed.
    """
    merged: Counter[tuple[float, int]] = Counter()
    for each in rounds:
        merged[each.noise, each.rate_bits] += each.times
    some = tuple(sorted(Rounds(n, *how) for how, n in merged.items() if n))
    if any(each.noise <= 0 for each in some):
        return float("inf")
    return _epsilon(some, delta) if some else 0.0


@lru_cache(maxsize=256)
def _epsilon(rounds: tuple[Rounds, ...], delta: float) -> float:
    together = _library().identity()
    for each in rounds:
        together = together.compose(_losses(each))
    return float(together.get_epsilon_for_delta(delta))


def _losses(rounds: Rounds) -> Any:  # noqa: ANN401  (the library's class)
    """The privacy loss of equal rounds, as a distribution; whole batches are one Gaussian."""
    times, noise, rate_bits = rounds
    if not rate_bits:
        return _losses_of_one(noise / sqrt(times), 0)
    return _losses_of_one(noise, rate_bits).self_compose(times)


@lru_cache(maxsize=8)  # of some megabytes each; a site asks for the same one round after round
def _losses_of_one(noise: float, rate_bits: int) -> Any:  # noqa: ANN401
    """The distribution for one round: most of what a count of (ε, δ) costs in time."""
    return _library().from_gaussian_mechanism(noise, sampling_prob=2.0**-rate_bits)


def affordable(spent: Sequence[Rounds], more: Rounds, epsilon: float, delta: float) -> int:
    """How many of ``more.times`` equal rounds fit into a budget beside those that are spent."""
    if epsilon_of([*spent, more], delta) <= epsilon:
        return more.times
    if epsilon_of(spent, delta) > epsilon:
        return 0
    fits, too_many = 0, more.times
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if epsilon_of([*spent, more._replace(times=middle)], delta) <= epsilon:
            fits = middle
        else:
            too_many = middle
    return fits


@lru_cache(maxsize=256)
def noise_for(epsilon: float, delta: float, count: int, rate_bits: int) -> float:
    """The least noise, in clips, whose ``count`` rounds cost at most (ε, δ).

    The ε that it costs is at most ε and at least (1 − ``ACCURACY``) ε, unless the noise is
    ``LEAST_NOISE``: distributions of less are too wide to compose.

    Raises:
        ConfigError: no sensible noise is enough, or ``dp-accounting`` is not installed.
    """

    def excess(noise: float) -> float:
        return log(epsilon_of([Rounds(count, noise, rate_bits)], delta) / epsilon)

    low, high = _bracket(excess, f"privacy-epsilon {epsilon:g} at delta {delta:g}", count)
    while high[1] < -ACCURACY and high[0] > LEAST_NOISE:
        middle = _between(low, high)
        value = excess(middle)
        low, high = ((middle, value), high) if value > 0 else (low, (middle, value))
    return high[0]


Point = tuple[float, float]  # a noise, and log(its ε / the ε of the promise)


def _bracket(excess: Callable[[float], float], promise: str, count: int) -> tuple[Point, Point]:
    """Two noises, at most a factor 4 apart: the first breaks the promise, the second keeps it.

    If ``LEAST_NOISE`` is enough, both are that.
    """
    here = 1.0, excess(1.0)
    factor = 4.0 if here[1] > 0 else 0.5
    while LEAST_NOISE < here[0] * factor <= LARGEST_NOISE:
        there = here[0] * factor, excess(here[0] * factor)
        if (here[1] > 0) != (there[1] > 0):
            return min(here, there), max(here, there)
        here = there
    if factor < 1:
        least = LEAST_NOISE, excess(LEAST_NOISE)
        return least, here if least[1] > 0 else least
    raise ConfigError(
        f"{promise}: a noise of {LARGEST_NOISE:g} clips is not enough for {count} rounds; take "
        "fewer rounds or a larger epsilon"
    )


def _between(low: Point, high: Point) -> float:
    """Where log ε, as good as linear in the logarithm of the noise, meets the promise from below.

    It aims at the middle of what is accepted, and stays inside so that no end stands still.
    """
    share = (low[1] + ACCURACY / 2) / (low[1] - high[1])
    return float(low[0] * (high[0] / low[0]) ** min(max(share, 0.02), 0.98))


def rate_bits_of(batch: int, count: int) -> int:
    """The least b with 2^-b ≤ batch / count: rates are powers of two, so that none tells n."""
    bits = 0
    while count > batch << bits:
        bits += 1
    return bits


def _library() -> Any:  # noqa: ANN401  (a module)
    """The module of privacy loss distributions, for units that are added or removed."""
    return import_extra("privacy", COUNTING, "dp_accounting.pld.privacy_loss_distribution")
