"""Shamir's secret sharing of a vector, and sums of shares of which some may be lies.

A secret vector (q,) is the constant term of q polynomials of degree t (Shamir 1979). The share of a
member is their value at its point. Any t shares are uniformly random; t + 1 give the vector. Sums
of shares are shares of the sum, so that members who add what they have got learn nothing of single
vectors. n sums are a Reed-Solomon code word (McEliece and Sarwate 1981): with n ≥ t + 1 + 2e, e
wrong ones are found and corrected by the decoder of Berlekamp and Welch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from shared.base.errors import WireError
from shared.sealed.field import (
    PRIME,
    Elements,
    evaluate,
    interpolate,
    multiply,
    total,
)


@dataclass(frozen=True)
class OpenedSum:
    """A vector that shares have given, and the points whose shares were not of it."""

    vector: Elements  # (q,)
    liars: tuple[int, ...]


def split(secret: Elements, randomness: Elements, points: Sequence[int]) -> dict[int, Elements]:
    """The share (q,) of each point.

    Args:
        secret: (q,) elements.
        randomness: (t, q) uniformly random elements, the polynomials' other coefficients.
        points: distinct and not 0.

    Raises:
        ValueError: a point is 0 or occurs twice: its share would be the secret, or none.
    """
    if len({p % PRIME for p in points} - {0}) != len(points):
        raise ValueError(f"distinct points other than 0 expected, got {list(points)}")
    coefficients = np.vstack([secret[None], randomness])
    return {point: evaluate(coefficients, point) for point in points}


def combine(shares: Mapping[int, Elements], needed: int) -> OpenedSum:
    """The vector of at least ``needed`` shares; wrong ones are found, as many as can be.

    Args:
        shares: (q,) by point.
        needed: t + 1.

    Raises:
        WireError: there are too few, or too many of them are wrong.
    """
    if len(shares) < needed:
        raise WireError(f"{needed} shares expected, got {len(shares)}")
    points = sorted(shares)
    values = np.vstack([shares[point] for point in points])
    good = points
    if not _fits(points, values, needed):
        good = _find_honest(points, values, needed)
        rows = [points.index(point) for point in good]
        if not _fits(good, values[rows], needed):
            raise _too_many_wrong(points, needed)
    first = [points.index(point) for point in good[:needed]]
    vector = interpolate(good[:needed], values[first])
    return OpenedSum(vector, tuple(point for point in points if point not in good))


def _fits(points: Sequence[int], values: Elements, needed: int) -> bool:
    """Whether all values (n, q) lie on polynomials of degree below ``needed``."""
    base = points[:needed]
    return all(
        np.array_equal(interpolate(base, values[:needed], point), row)
        for point, row in zip(points[needed:], values[needed:], strict=True)
    )


def _find_honest(points: Sequence[int], values: Elements, needed: int) -> list[int]:
    """The points whose values are right, by one random combination of each row.

    The weights are a hash of all rows: whoever sends a wrong one cannot choose it by them.
    """
    seed = sha256(values.astype("<u8").tobytes()).digest()
    weights = [
        int.from_bytes(sha256(seed + index.to_bytes(4, "little")).digest(), "little") % PRIME
        for index in range(values.shape[1])
    ]
    combined = total(multiply(values, np.array(weights, np.uint64)).T)
    word = [int(value) for value in combined]
    for errors in range(1, (len(points) - needed) // 2 + 1):
        honest = _decode(points, word, needed, errors)
        if honest is not None:
            return honest
    raise _too_many_wrong(points, needed)


def _decode(
    points: Sequence[int], word: Sequence[int], needed: int, errors: int
) -> list[int] | None:
    """The points without an error, if at most ``errors`` have one (Berlekamp and Welch 1986).

    Finds E of degree ``errors``, monic, and Q of degree below needed + errors with Q(x) = y·E(x) at
    every point. Roots of E are the places of errors.
    """
    size = needed + errors
    rows = []
    for x, y in zip(points, word, strict=True):
        powers = [pow(x, k, PRIME) for k in range(size)]
        rows.append(powers + [-y * powers[k] % PRIME for k in range(errors)]
                    + [y * pow(x, errors, PRIME) % PRIME])  # fmt: skip
    solution = solve(rows)
    if solution is None:
        return None
    locator = [*solution[size:], 1]
    good = [x for x in points if sum(c * pow(x, k, PRIME) for k, c in enumerate(locator)) % PRIME]
    at = [points.index(x) for x in good]
    if len(good) < len(points) - errors or len(good) < needed:
        return None
    values = np.array([[word[index]] for index in at], np.uint64)
    return good if _fits(good, values, needed) else None


def solve(rows: Sequence[Sequence[int]]) -> list[int] | None:
    """One solution of linear equations modulo the prime; None if there is none.

    Args:
        rows: the coefficients of each equation, and its right side at the end. Unknowns that are
            free are 0.
    """
    matrix, unknowns = [list(row) for row in rows], len(rows[0]) - 1
    pivots: list[int] = []
    for column in range(unknowns):
        at = len(pivots)
        pick = next((r for r in range(at, len(matrix)) if matrix[r][column]), None)
        if pick is None:
            continue
        matrix[at], matrix[pick] = matrix[pick], matrix[at]
        inverse = pow(matrix[at][column], -1, PRIME)
        matrix[at] = [value * inverse % PRIME for value in matrix[at]]
        for r, row in enumerate(matrix):
            if r != at and (factor := row[column]):
                matrix[r] = [(a - factor * b) % PRIME for a, b in zip(row, matrix[at], strict=True)]
        pivots.append(column)
    if any(row[-1] for row in matrix[len(pivots) :]):
        return None
    solution = [0] * unknowns
    for row, column in zip(matrix, pivots, strict=False):
        solution[column] = row[-1]
    return solution


def _too_many_wrong(points: Sequence[int], needed: int) -> WireError:
    correctable = (len(points) - needed) // 2
    return WireError(
        f"{len(points)} sums of which {needed} suffice do not agree: at most {correctable} wrong "
        "ones can be told"
    )
