"""The field's arithmetic is exact, and integers come back from it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.base.errors import ConfigError
from shared.sealed.field import (
    MOST_OF_SITE,
    MOST_SITES,
    PRIME,
    add,
    evaluate,
    interpolate,
    multiply,
    reduce,
    to_elements,
    to_integers,
    total,
)

elements = st.integers(0, PRIME - 1) | st.sampled_from([0, 1, PRIME - 1, 1 << 60, (1 << 32) - 1])


def array(*values):
    return np.array(values, np.uint64)


@given(elements, elements)
def test_sums_and_products_are_those_of_integers(a, b):
    assert add(array(a), array(b)).tolist() == [(a + b) % PRIME]
    assert multiply(array(a), array(b)).tolist() == [a * b % PRIME]


@given(st.integers(0, 2**64 - 1))
def test_any_64_bits_are_reduced(value):
    assert reduce(array(value)).tolist() == [value % PRIME]


@given(st.lists(elements, min_size=1, max_size=6), st.integers(1, 2**31 - 1))
def test_a_polynomial_has_the_value_that_integers_give(coefficients, point):
    rows = np.array([coefficients, coefficients[::-1]], np.uint64).T
    expected = [
        sum(c * pow(point, k, PRIME) for k, c in enumerate(each)) % PRIME
        for each in (coefficients, coefficients[::-1])
    ]
    assert evaluate(rows, point).tolist() == expected
    points = [point + 1 + k for k in range(len(coefficients))]
    values = np.array([evaluate(rows, p) for p in points])
    assert interpolate(points, values, point).tolist() == expected
    assert interpolate(points, values).tolist() == rows[0].tolist()


@given(st.lists(st.integers(-MOST_OF_SITE, MOST_OF_SITE), min_size=1, max_size=5))
def test_signed_numbers_come_back(numbers):
    given_ = np.array(numbers, np.int64)
    assert to_integers(to_elements(given_)).tolist() == numbers


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_honest_sum_does_not_wrap(sign):
    most = to_elements(np.array([sign * MOST_OF_SITE]))
    whole = total(np.repeat(most[None], MOST_SITES, axis=0))
    assert to_integers(whole).tolist() == [sign * MOST_OF_SITE * MOST_SITES]


@pytest.mark.parametrize("number", [MOST_OF_SITE + 1, -MOST_OF_SITE - 1, -(2**63), 2**63 - 1])
def test_a_number_that_could_wrap_a_sum_is_refused(number):
    with pytest.raises(ConfigError, match=f"at most {MOST_OF_SITE} grid steps expected"):
        to_elements(np.array([0, number], np.int64))
