"""What rounds cost in (ε, δ), by privacy loss distributions; and the noise that a promise needs.

A round is a Gaussian mechanism on a batch into which every unit comes with probability p (Poisson).
Neighbours differ by one unit, added or removed. Events are composed by ``dp-accounting`` (Google;
privacy loss distributions after Koskela et al. 2020, https://arxiv.org/abs/1906.03049, and
Doroshenko et al. 2022), which the extra ``privacy`` installs.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

from shared.base.errors import ConfigError

MISSING = "dp-accounting counts (epsilon, delta): install it with pip install 'dandelion[privacy]'"
LARGEST_NOISE = 1e4
ACCURACY = 1e-3  # of a calibrated noise, relative


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
    events, accountant = _library()
    for each in rounds:
        event = events.GaussianDpEvent(each.noise)
        if each.rate_bits:
            event = events.PoissonSampledDpEvent(2.0**-each.rate_bits, event)
        accountant.compose(events.SelfComposedDpEvent(event, each.times))
    return float(accountant.get_epsilon(delta))


def affordable(spent: Sequence[Rounds], more: Rounds, epsilon: float, delta: float) -> int:
    """How many of ``more.times`` equal rounds fit into a budget beside those that are spent."""
    if epsilon_of([*spent, more], delta) <= epsilon:
        return more.times
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

    Raises:
        ConfigError: no sensible noise is enough, or ``dp-accounting`` is not installed.
    """
    low, high = 0.0, 1.0
    while epsilon_of([Rounds(count, high, rate_bits)], delta) > epsilon:
        low, high = high, 2 * high
        if high > LARGEST_NOISE:
            raise ConfigError(
                f"privacy-epsilon {epsilon:g} at delta {delta:g}: a noise of {LARGEST_NOISE:g} "
                f"clips is not enough for {count} rounds; take fewer rounds or a larger epsilon"
            )
    while high - low > ACCURACY * high:
        middle = (low + high) / 2
        if middle > 0.2 and epsilon_of([Rounds(count, middle, rate_bits)], delta) <= epsilon:
            high = middle
        else:
            low = middle
    return high


def rate_bits_of(batch: int, count: int) -> int:
    """The least b with 2^-b ≤ batch / count: rates are powers of two, so that none tells n."""
    bits = 0
    while count > batch << bits:
        bits += 1
    return bits


def _library() -> tuple[Any, Any]:
    """The module of events, and a fresh accountant for units that are added or removed."""
    try:
        dp_event: Any = import_module("dp_accounting.dp_event")
        accountants: Any = import_module("dp_accounting.pld")
    except ImportError as error:
        raise ConfigError(MISSING) from error
    return dp_event, accountants.PLDAccountant()
