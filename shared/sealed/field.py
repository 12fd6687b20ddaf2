"""Exact arithmetic modulo the prime 2⁶¹ − 1, on arrays, and the integers that stand for numbers.

Elements are uint64 below the prime. A signed integer x is x modulo the prime: one of at most
``MOST_OF_SITE`` in size for each of ``MOST_SITES`` sites adds up to less than 2⁶⁰, so that an
honest sum never wraps.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ConfigError

PRIME = (1 << 61) - 1
BITS = 61
HALF = PRIME // 2  # sums up to it are positive
MOST_SITES = 1 << 10
MOST_OF_SITE = (1 << 49) - 1  # of one number of one site; a clip is 2²⁰
ELEMENT_BYTES = 8
LOW, LOW_BITS = np.uint64((1 << 32) - 1), np.uint64(32)
Elements = NDArray[np.uint64]
_P, _BITS = np.uint64(PRIME), np.uint64(BITS)
_LOW29, _BITS29 = np.uint64((1 << 29) - 1), np.uint64(29)


def reduce(values: Elements) -> Elements:
    """Values of 64 bits modulo the prime."""
    folded = (values & _P) + (values >> _BITS)
    return np.where(folded >= _P, folded - _P, folded)


def add(a: Elements, b: Elements) -> Elements:
    """The sum of elements, of any shapes that numpy can broadcast."""
    return reduce(a + b)


def multiply(a: Elements, b: Elements | np.uint64) -> Elements:
    """The product of elements: halves of 32 bits, of whose products none overflows."""
    high_a, low_a, high_b, low_b = a >> LOW_BITS, a & LOW, b >> LOW_BITS, b & LOW
    middle = high_a * low_b + low_a * high_b  # times 2³², below 2⁶²
    low = low_a * low_b
    top = high_a * high_b * np.uint64(8)  # 2⁶⁴ is 8 modulo the prime
    middle = (middle >> _BITS29) + ((middle & _LOW29) << LOW_BITS)
    return reduce(reduce(top + middle) + (low & _P) + (low >> _BITS))


def total(rows: Elements) -> Elements:
    """The sum (q,) of rows (n, q)."""
    result = np.zeros(rows.shape[1], np.uint64)
    for row in rows:
        result = add(result, row)
    return result


def evaluate(coefficients: Elements, point: int) -> Elements:
    """The values (q,) of q polynomials at a point; ``coefficients`` (k, q), the constant first."""
    at, result = np.uint64(point), np.zeros(coefficients.shape[1], np.uint64)
    for row in coefficients[::-1]:
        result = add(multiply(result, at), row)
    return result


def lagrange_weights(points: Sequence[int], at: int) -> Elements:
    """The weights (k,) with which values at ``points`` give a polynomial's value at ``at``.

    Args:
        points: distinct, k of them, for a polynomial of degree below k.
        at: where the value is wanted.
    """
    weights = []
    for index, point in enumerate(points):
        above = below = 1
        for other in (*points[:index], *points[index + 1 :]):
            above = above * (at - other) % PRIME
            below = below * (point - other) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return np.array(weights, np.uint64)


def interpolate(points: Sequence[int], values: Elements, at: int = 0) -> Elements:
    """The value (q,) at ``at`` of the polynomials with values (k, q) at k points."""
    return total(multiply(values, lagrange_weights(points, at)[:, None]))


def to_elements(numbers: NDArray[np.int64]) -> Elements:
    """The elements that stand for the signed numbers of one site.

    Raises:
        ConfigError: a number is so large that a sum of many sites could wrap.
    """
    peak = max(abs(int(numbers.max(initial=0))), abs(int(numbers.min(initial=0))))
    if peak > MOST_OF_SITE:
        raise ConfigError(
            f"numbers of at most {MOST_OF_SITE} grid steps expected in a sealed sum, got {peak}: "
            "use a smaller zo-batch-size or privacy-noise"
        )
    return (numbers % PRIME).astype(np.uint64)


def to_integers(elements: Elements) -> NDArray[np.int64]:
    """The signed sum that elements stand for: those above half of the prime are negative."""
    signed = elements.astype(np.int64)
    return np.where(signed > HALF, signed - PRIME, signed)
