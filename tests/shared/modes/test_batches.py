"""A step's examples are a pure function of seed, site and round: drawn, or parts of an epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from shared.base.errors import ConfigError, DataError
from shared.modes.batches import draw, gradient_rows, query_rows, shuffle
from shared.randomness.streams import query_batch_key
from shared.training.validate import configure


@examples(max_examples=50)
@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 2**31 - 1), st.integers(1, 9**6))
def test_a_draw_is_pure_distinct_while_it_can_be_and_else_even(count, batch, slot, round_):
    rows = draw(query_batch_key(7, round_, slot, 0), count, batch)
    assert np.array_equal(rows, draw(query_batch_key(7, round_, slot, 0), count, batch))
    assert rows.shape == (batch,)
    assert rows.dtype == np.int64
    times = np.bincount(rows, minlength=count)
    assert len(times) == count
    assert times.max() - times.min() <= 1


def test_a_draw_differs_by_seed_site_round_and_step():
    base = (1, 2, 3, 4)
    changed = [tuple(v + (i == j) for j, v in enumerate(base)) for i in range(4)]
    draws = {tuple(draw(query_batch_key(*names), 10**6, 8)) for names in [base, *changed]}
    assert len(draws) == 5


def test_draws_are_the_same_on_every_machine():
    assert draw(query_batch_key(0, 1, 1, 0), 1000, 6).tolist() == [635, 848, 414, 599, 345, 401]


def test_draws_are_uniform():
    pairs = Counter(
        frozenset(draw(query_batch_key(0, r, 1, 0), 5, 2).tolist()) for r in range(1, 4001)
    )
    assert len(pairs) == 10
    chi2 = sum((n - 400) ** 2 / 400 for n in pairs.values())
    assert chi2 < 27.9  # 9 degrees of freedom: one in a thousand, and the seed is fixed


def test_a_draw_from_nothing_is_refused():
    with pytest.raises(DataError, match="at least 1 example"):
        draw(query_batch_key(0, 1, 1, 0), 0, 4)


# --- epochs


def epochs(**settings):
    return configure({"batch-order": "epochs", "seed": 3, **settings})


@examples(max_examples=50)
@given(
    count=st.integers(1, 40),
    size=st.integers(1, 50),
    slot=st.integers(1, 9),
    steps=st.integers(1, 3),
)
def test_an_epoch_has_each_example_once_and_the_next_another_order(count, size, slot, steps):
    c = epochs(zo_batch_size=size, local_steps=steps)
    each = -(-count // size)  # batches of an epoch
    numbers = [(1 + at // steps, at % steps) for at in range(3 * each)]
    batches = [query_rows(c, slot, *number, count) for number in numbers]
    assert {len(batch) for batch in batches} <= {min(size, count), count % size}
    for epoch in range(3):
        rows = np.concatenate(batches[epoch * each : (epoch + 1) * each])
        assert sorted(rows.tolist()) == list(range(count))
    again = [query_rows(c, slot, *number, count) for number in numbers]
    assert all(np.array_equal(*pair) for pair in zip(batches, again, strict=True))


def test_orders_differ_by_seed_site_and_epoch_and_are_the_same_on_every_machine():
    orders = [
        query_rows(epochs(zo_batch_size=9, seed=seed), slot, round_, 0, 9).tolist()
        for seed, slot, round_ in ((3, 1, 1), (4, 1, 1), (3, 2, 1), (3, 1, 2))
    ]
    assert orders[0] == [0, 5, 6, 7, 4, 2, 3, 8, 1]
    assert len({tuple(order) for order in orders}) == 4


def test_orders_are_uniform():
    firsts = Counter(shuffle(query_batch_key(0, e, 1, 0), 6).tolist()[0] for e in range(1, 3001))
    assert sum((firsts[row] - 500) ** 2 / 500 for row in range(6)) < 20.5  # one in a thousand


def test_an_order_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        shuffle(query_batch_key(0, 1, 1, 0), 4)[0] = 1


def test_an_epoch_of_nothing_is_refused():
    with pytest.raises(DataError, match="at least 1 example"):
        query_rows(epochs(), 1, 1, 0, 0)


def test_queries_with_batches_of_their_own_go_on_in_the_epoch():
    c = epochs(zo_batch_size=2, query_data="fresh", queries=3)
    rows = [query_rows(c, 1, round_, query, 12) for round_ in (1, 2) for query in range(3)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(12))


@pytest.mark.parametrize(
    ("settings", "rounds"),
    [({"mode": "fo"}, (1, 2, 3)), ({"mode": "calibrate", "bp-interval": 4}, (1, 5, 9))],
)
def test_gradients_go_through_epochs_in_the_rounds_that_have_them(settings, rounds):
    c = epochs(bp_batch_size=4, **settings)
    rows = np.concatenate([gradient_rows(c, 1, round_, 0, 12) for round_ in rounds])
    assert sorted(rows.tolist()) == list(range(12))


@pytest.mark.parametrize("steps", [1, 3])
def test_federated_averaging_goes_through_epochs_by_its_local_steps(steps):
    c = epochs(mode="fedavg", bp_batch_size=4, local_steps=steps, learning_rate=0.01)
    at = [(1 + k // steps, k % steps) for k in range(3)]
    rows = np.concatenate([gradient_rows(c, 1, *each, 12) for each in at])
    assert sorted(rows.tolist()) == list(range(12))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zo-batch-size": 0}, "zo-batch-size = 0.*all of a site's examples"),
        ({"mode": "fo", "bp-batch-size": 0}, "bp-batch-size = 0.*all of a site's examples"),
        ({"privacy": "local", "privacy-epsilon": 2.0, "privacy-clip": 1.0}, "in secret"),
    ],
)
def test_epochs_are_refused_where_they_would_mean_nothing_or_break_a_promise(settings, message):
    with pytest.raises(ConfigError, match=message):
        epochs(**settings)
