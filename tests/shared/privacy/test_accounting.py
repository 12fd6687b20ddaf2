"""Epsilon of rounds against dp-accounting, the noise a promise needs, and what still fits."""

import sys
from math import inf

import pytest

from shared.base.errors import ConfigError
from shared.privacy.accounting import (
    Rounds,
    affordable,
    epsilon_of,
    noise_for,
    rate_bits_of,
)

pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
DELTA = 1e-5


def own_epsilon(parts):
    """ε by dp-accounting, written out."""
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    for times, noise, rate in parts:
        event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
        accountant.compose(event, times)
    return accountant.get_epsilon(DELTA)


@pytest.mark.parametrize("noise", [0.8, 1.5])
def test_a_thousand_rounds_cost_what_the_library_says(noise):
    ours = epsilon_of([Rounds(1000, noise, 6)], DELTA)
    assert ours == pytest.approx(own_epsilon([(1000, noise, 1 / 64)]), rel=1e-3)


def test_rounds_of_several_kinds_add_up_in_any_order():
    first, second = Rounds(200, 1.0, 5), Rounds(300, 2.0, 4)
    ours = epsilon_of([first, second, first], DELTA)
    theirs = own_epsilon([(400, 1.0, 1 / 32), (300, 2.0, 1 / 16)])
    assert ours == epsilon_of([second, first, first], DELTA)
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_nothing_costs_nothing_and_raw_numbers_cost_everything():
    assert epsilon_of([], DELTA) == 0
    assert epsilon_of([Rounds(0, 1.0, 3)], DELTA) == 0
    assert epsilon_of([Rounds(1, 0.0, 3)], DELTA) == inf


def test_the_noise_for_a_promise_keeps_it_and_is_hardly_more_than_needed():
    noise = noise_for(2.0, DELTA, 100, 5)
    assert epsilon_of([Rounds(100, noise, 5)], DELTA) <= 2.0
    assert epsilon_of([Rounds(100, noise * 0.998, 5)], DELTA) > 2.0


def test_a_promise_that_no_noise_keeps_is_refused():
    with pytest.raises(ConfigError, match="is not enough for 2 rounds"):
        noise_for(1e-9, 1e-12, 2, 0)


def test_what_is_affordable_fits_and_one_more_does_not():
    spent, more = [Rounds(20, 2.0, 6)], Rounds(400, 1.2, 4)
    fits = affordable(spent, more, 3.0, DELTA)
    assert 0 < fits < 400
    assert epsilon_of([*spent, more._replace(times=fits)], DELTA) <= 3.0
    assert epsilon_of([*spent, more._replace(times=fits + 1)], DELTA) > 3.0
    assert affordable([], Rounds(3, 10.0, 9), 3.0, DELTA) == 3
    assert affordable([Rounds(1, 0.5, 0)], more, 0.1, DELTA) == 0


@pytest.mark.parametrize(("batch", "count", "bits"), [(16, 1000, 6), (16, 16, 0), (16, 17, 1)])
def test_rates_are_powers_of_two_at_most_what_was_given(batch, count, bits):
    assert rate_bits_of(batch, count) == bits
    assert count / 2**bits <= batch


def test_without_the_library_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting.pld.privacy_loss_distribution", None)
    with pytest.raises(ConfigError, match=r"needs dp_accounting: .* 'dandelion\[privacy\]'"):
        epsilon_of([Rounds(7, 1.1, 3)], DELTA)
