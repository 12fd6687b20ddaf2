"""Shares: any t + 1 give the sum to the bit, t give nothing, and liars are named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.errors import WireError
from shared.sealed.field import PRIME, add, interpolate, to_elements, to_integers, total
from shared.sealed.shamir import combine, solve, split

few = settings(deadline=None, max_examples=25)
POINTS = (3, 7, 1 << 30, (1 << 31) - 1, 12, 44, 5, 6, 9)


def random_elements(draw, *shape):
    return draw.integers(0, PRIME, shape, np.uint64)


def sums_of(vectors, needed, draw, points=POINTS):
    """The sum of shares (q,) of each member, of vectors (n, q) of signed integers."""
    q = vectors.shape[1]
    each = [split(to_elements(v), random_elements(draw, needed - 1, q), points) for v in vectors]
    return {point: total(np.vstack([shares[point] for shares in each])) for point in points}


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32), st.data())
@few
def test_any_enough_sums_give_the_plain_sum_to_the_bit(sites, needed, seed, data):
    draw = np.random.default_rng(seed)
    vectors = draw.integers(-(1 << 49) + 1, 1 << 49, (sites, 4))
    sums = sums_of(vectors, needed, draw)
    members = data.draw(st.permutations(POINTS))[: data.draw(st.integers(needed, len(POINTS)))]
    result = combine({point: sums[point] for point in members}, needed)
    assert result.liars == ()
    assert to_integers(result.vector).tolist() == vectors.sum(0).tolist()


@given(st.integers(0, 2**32), st.integers(1, 7), st.data())
@few
def test_as_many_liars_as_can_be_told_are_named_and_corrected(seed, needed, data):
    draw = np.random.default_rng(seed)
    vectors = draw.integers(-1000, 1000, (3, 5))
    sums = sums_of(vectors, needed, draw)
    most = (len(POINTS) - needed) // 2
    liars = data.draw(st.permutations(POINTS))[: data.draw(st.integers(1, most))]
    for liar in liars:
        where = data.draw(st.integers(0, 4))
        sums[liar][where : where + 1] = add(sums[liar][where : where + 1], np.array([1], np.uint64))
    result = combine(sums, needed)
    assert result.liars == tuple(sorted(liars))
    assert to_integers(result.vector).tolist() == vectors.sum(0).tolist()


def test_liars_who_agree_on_another_sum_are_named():
    draw = np.random.default_rng(1)
    true, other = (sums_of(np.array([[k, -k]]), 5, draw) for k in (5, 900))
    lies = {point: other[point] for point in POINTS[:2]}
    result = combine(true | lies, 5)
    assert to_integers(result.vector).tolist() == [5, -5]
    assert result.liars == tuple(sorted(POINTS[:2]))


@pytest.mark.parametrize(("members", "liars"), [(6, 1), (5, 1), (9, 3)])
def test_more_liars_than_can_be_told_give_no_sum(members, liars):
    draw = np.random.default_rng(2)
    needed = 5
    sums = sums_of(np.array([[1, 2]]), needed, draw, POINTS[:members])
    for point in POINTS[:liars]:
        sums[point] = random_elements(draw, 2)
    if members == needed:  # nothing is left over to check by
        assert to_integers(combine(sums, needed).vector).tolist() != [1, 2]
        return
    with pytest.raises(WireError, match=r"do not agree: at most \d wrong ones can be told"):
        combine(sums, needed)


def test_too_few_shares_are_refused_and_leave_every_secret_possible():
    draw = np.random.default_rng(3)
    shares = split(to_elements(np.array([77])), random_elements(draw, 2, 1), (1, 2, 3))
    with pytest.raises(WireError, match="3 shares expected, got 2"):
        combine({k: shares[k] for k in (1, 2)}, 3)
    for guess in (0, 5, 77):  # two shares and any secret lie on one polynomial of degree 2
        points, values = (0, 1, 2), np.array([[guess], shares[1], shares[2]], np.uint64)
        assert interpolate(points, values, 0).tolist() == [guess]


@pytest.mark.parametrize("points", [(0, 1, 2), (1, 1, 2), (PRIME, 1, 2)])
def test_points_that_would_give_the_secret_away_are_refused(points):
    with pytest.raises(ValueError, match="distinct points other than 0"):
        split(np.zeros(1, np.uint64), np.zeros((1, 1), np.uint64), points)


def test_a_share_as_it_was_written_down():
    """5 + 3x + x² at 2 and at 10; and with the largest element as the constant."""
    randomness = np.array([[3, 0], [1, 1]], np.uint64)
    shares = split(np.array([5, PRIME - 1], np.uint64), randomness, (2, 10))
    assert {point: share.tolist() for point, share in shares.items()} == {
        2: [15, 3],
        10: [135, 99],
    }


def test_equations_without_a_solution_have_none():
    assert solve([[1, 1, 2], [2, 2, 5]]) is None
    assert solve([[1, 1, 2], [2, 2, 4]]) == [2, 0]
    assert solve([[2, 0, 4], [0, 3, 9], [1, 1, 5]]) == [2, 3]
