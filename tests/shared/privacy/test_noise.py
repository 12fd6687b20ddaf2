"""Random bits of a key, and the discrete Gaussian against its exact probabilities."""

from collections import Counter
from fractions import Fraction
from math import exp, sqrt

import numpy as np
import pytest

from shared.privacy.discrete_gaussian import (
    discrete_gaussians,
    discrete_laplace,
    is_exponential,
)
from shared.privacy.keystream import KeyStream, sample_units

DRAWS = 20_000


def stream(purpose="noise", key=b"k", name=b"n"):
    return KeyStream(key * 32, purpose, name * 32)


def largest_score(counts, probabilities):
    """The largest deviation of a count, in its own standard deviations."""
    draws = sum(counts.values())
    return max(
        abs(counts[value] - draws * p) / sqrt(draws * p * (1 - p))
        for value, p in probabilities.items()
        if draws * p > 20
    )


@pytest.mark.parametrize("sigma", [1, 2, 3, 7])
def test_discrete_gaussians_have_their_exact_probabilities(sigma):
    weights = {x: exp(-x * x / (2 * sigma * sigma)) for x in range(-12 * sigma, 12 * sigma + 1)}
    total = sum(weights.values())
    counts = Counter(discrete_gaussians(stream(), sigma, DRAWS).tolist())
    assert largest_score(counts, {x: w / total for x, w in weights.items()}) < 4.5


def test_discrete_laplace_has_its_exact_probabilities():
    scale, source = 3, stream()
    counts = Counter(discrete_laplace(source, scale) for _ in range(DRAWS))
    weights = {x: exp(-abs(x) / scale) for x in range(-60, 61)}
    total = sum(weights.values())
    assert largest_score(counts, {x: w / total for x, w in weights.items()}) < 4.5


@pytest.mark.parametrize("fraction", [Fraction(0), Fraction(1, 3), Fraction(1), Fraction(5, 2)])
def test_a_coin_falls_with_an_exponential_probability(fraction):
    source, p = stream(), exp(-fraction)
    heads = sum(
        is_exponential(source, fraction.numerator, fraction.denominator) for _ in range(DRAWS)
    )
    assert abs(heads - DRAWS * p) <= 4.5 * sqrt(DRAWS * p * (1 - p))


def test_a_large_sigma_has_its_moments():
    sigma = 3 << 20
    drawn = discrete_gaussians(stream(), sigma, DRAWS) / sigma
    assert abs(drawn.mean()) < 4.5 / sqrt(DRAWS)
    assert abs(drawn.std() - 1) < 4.5 / sqrt(2 * DRAWS)
    assert abs(np.mean(drawn**4) - 3) < 4.5 * sqrt(96 / DRAWS)


def test_no_sigma_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        discrete_gaussians(stream(), 0, 1)


def test_a_stream_repeats_and_shares_nothing_with_others():
    def first(each):
        return each.bits(256)

    others = [stream("rows"), stream(key=b"l"), stream(name=b"m")]
    assert first(stream()) == first(stream())
    assert len({first(each) for each in [stream(), *others]}) == 4


def test_bits_are_taken_one_after_the_other():
    whole, parts = stream(), stream()
    value = whole.bits(5000)
    assert value == sum(parts.bits(1000) << (1000 * k) for k in range(5))


def test_a_key_of_another_length_is_refused():
    with pytest.raises(ValueError, match="32 bytes expected"):
        KeyStream(b"short", "rows", bytes(32))


@pytest.mark.parametrize("bits", [0, 1, 3])
def test_units_are_sampled_at_their_rate(bits):
    count, p = 100_000, 2.0**-bits
    drawn = sample_units(stream(), count, bits)
    assert abs(len(drawn) - count * p) <= 4.5 * sqrt(count * p * (1 - p))
    assert len(set(drawn.tolist())) == len(drawn)
