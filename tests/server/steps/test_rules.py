"""Rules of rates: formulas, and what zeros, a wild round, or a rise of the loss may do."""

from math import sqrt

import pytest

from server.steps.rules import (
    LEAST,
    RANGE,
    Agreement,
    Evidence,
    StepSettings,
    StepState,
    auto,
    normalise,
    share_of,
)

SETTINGS = StepSettings(movement=1e-3, memory=0.9, queries=16)


def follow(rule, evidence, settings=SETTINGS, state=None):
    """The states after each of some rounds."""
    states = [state or StepState()]
    for each in evidence:
        states.append(rule(states[-1], each, settings))
    return states[1:]


def test_a_normalised_rate_is_the_movement_over_the_running_mean_of_squared_slopes():
    energies = [4.0, 1.0, 2.0, 8.0]
    mean = 0.0
    for step, state in enumerate(follow(normalise, map(Evidence, energies)), 1):
        mean = 0.9 * mean + 0.1 * energies[step - 1]
        assert state.taken == pytest.approx(1e-3 * sqrt(16) / sqrt(mean / (1 - 0.9**step)))


def test_without_memory_each_round_moves_exactly_as_far_as_the_setting_says():
    settings = StepSettings(movement=1e-3, memory=0.0, queries=16, momentum=0.6)
    for energy, state in zip(
        (4.0, 1.0, 2.0), follow(normalise, map(Evidence, (4.0, 1.0, 2.0)), settings), strict=True
    ):
        way = state.taken * sqrt(energy / 16) / sqrt(1 - 0.6**2)
        assert way == pytest.approx(1e-3)


@pytest.mark.parametrize("rule", [normalise, auto])
def test_rounds_of_zeros_change_no_rate_and_end(rule):
    usual = [Evidence(1.0)] * 12
    rate = follow(rule, usual)[-1].taken
    states = follow(rule, [*usual, *[Evidence(0.0)] * 40, *usual])
    assert states[-1].taken == pytest.approx(rate)
    assert follow(rule, [Evidence(0.0)] * 3)[-1].taken == 0.0
    late = follow(rule, [Evidence(0.0)] * 3 + usual)
    assert late[3].taken > 0


@pytest.mark.parametrize("rule", [normalise, auto])
def test_a_wild_round_moves_little_further_than_others_and_is_forgotten(rule):
    usual = [Evidence(1.0)] * 20
    evidence = [*usual, Evidence(1e8), *usual]
    states = follow(rule, evidence)
    ways = [s.taken * sqrt(e.energy / 16) for s, e in zip(states, evidence, strict=True)]
    assert max(ways) < 4.01 * ways[0]
    assert states[21].taken > 0.5 * states[19].taken


def test_a_rate_follows_falls_up_and_down():
    start = follow(auto, [Evidence(1.0)])[-1]
    assert start.taken == pytest.approx(1e-3 * sqrt(16))
    assert follow(auto, [Evidence(1.0, ratio=0.95)], state=start)[-1].rate == 2 * start.rate
    assert follow(auto, [Evidence(1.0, ratio=0.7)], state=start)[-1].rate == 1.2 * start.rate
    assert follow(auto, [Evidence(1.0, ratio=0.4)], state=start)[-1].rate == start.rate
    low = follow(auto, [Evidence(1.0, ratio=0.1)], state=start)[-1]
    assert low.rate == start.rate / 1.2
    assert not low.climbs
    assert follow(auto, [Evidence(1.0)], state=start)[-1].rate == start.rate


@pytest.mark.parametrize(
    ("ratio", "factor"), [(-0.01, 0.5 / 1.01), (-0.1, 0.5 / 1.1), (-4.0, 0.1), (-1e9, 1 / 16)]
)
def test_a_rise_of_the_loss_cuts_the_rate_by_what_it_says(ratio, factor):
    start = follow(auto, [Evidence(1.0)])[-1]
    assert follow(auto, [Evidence(1.0, ratio=ratio)], state=start)[-1].rate == pytest.approx(
        factor * start.rate
    )


def test_where_most_of_the_slopes_is_noise_a_rate_stays_lower():
    """The same falls, but half of u is the batches' noise: what 0.8 was, 0.6 is now."""
    half = Agreement(sites=2, value=1 / 3)
    start = follow(auto, [Evidence(1.0, half)])[-1]
    clean = follow(auto, [Evidence(1.0)])[-1]
    assert share_of(start) == pytest.approx(0.5)
    noisy = follow(auto, [Evidence(1.0, half, ratio=0.6)], state=start)[-1]
    assert noisy.rate == start.rate / 1.2
    assert noisy.climbs is False
    assert follow(auto, [Evidence(1.0, ratio=0.6)], state=clean)[-1].rate == 1.2 * clean.rate


def test_a_step_that_gained_nothing_for_all_examples_cuts_the_rate_at_once():
    """Its batch fell by 0.4 of the prediction, all of which is that batch's own noise."""
    half = Agreement(sites=2, value=1 / 3)
    start = follow(auto, [Evidence(1.0, half)])[-1]
    state = follow(auto, [Evidence(1.0, half, ratio=0.4)], state=start)[-1]
    assert state.rate == pytest.approx(start.rate * 0.5 / 1.2)


@pytest.mark.parametrize("sites", [2, 5])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_the_share_of_the_signal_is_that_of_the_mean_of_all_sites_slopes(sites, share):
    """Signal 1 and noise s² of each site: of u = 1 + s²/n the signal is 1."""
    noise = sites * (1 / share - 1)
    told = Agreement(sites, value=1 / (1 + noise))
    assert share_of(follow(auto, [Evidence(1.0, told)] * 3)[-1]) == pytest.approx(share)


def test_large_first_slopes_do_not_hide_that_sites_agree_no_more():
    """Their squares are thousandfold, their agreement is one of many."""
    first, later = Agreement(2, 0.9), Agreement(2, 0.0)
    states = follow(auto, [Evidence(1000.0, first)] * 2 + [Evidence(1.0, later)] * 20)
    assert share_of(states[1]) > 0.9
    assert share_of(states[-1]) < 0.3
    assert share_of(follow(auto, [Evidence(1.0, Agreement(2, -1.0))] * 9)[-1]) == LEAST


def test_a_shortened_step_does_not_say_that_the_rate_may_rise():
    states = follow(auto, [Evidence(1.0)] * 9 + [Evidence(1e6)])
    assert states[-1].taken < states[-1].rate / 100
    after = follow(auto, [Evidence(1.0, ratio=0.99)], state=states[-1])[-1]
    assert after.rate == states[-1].rate


def test_no_step_is_longer_than_is_usual_of_steps_though_slopes_once_were_larger():
    """Slopes fell and the rate rose meanwhile; large slopes then say that it was too large."""
    evidence = [Evidence(500.0)] * 2 + [Evidence(5.0, ratio=0.97)] * 6 + [Evidence(200.0)]
    states = follow(auto, evidence)
    ways = [s.taken * sqrt(e.energy / 16) for s, e in zip(states, evidence, strict=True)]
    assert ways[-1] == pytest.approx(4 * sorted(ways[-4:-1])[1])
    assert states[-1].taken < states[-1].rate


def test_a_rate_that_doubles_from_a_small_start_is_not_held_back():
    states = follow(auto, [Evidence(1.0), *[Evidence(1.0, ratio=0.99)] * 5])
    assert [s.taken / states[0].taken for s in states] == pytest.approx([1, 2, 4, 8, 16, 32])


@pytest.mark.parametrize(("ratio", "bound"), [(0.99, RANGE[1]), (-1.0, RANGE[0])])
def test_a_rate_stays_in_a_range_about_the_normalised_one(ratio, bound):
    states = follow(auto, [Evidence(1.0), *[Evidence(1.0, ratio=ratio)] * 60])
    assert states[-1].rate == pytest.approx(bound * 1e-3 * sqrt(16))


@pytest.mark.parametrize("factor", [1 / 20, 1.0, 12.0, 100.0])
def test_on_a_quadratic_the_rate_finds_the_best_from_wherever_it_starts(factor):
    """r = 1 − rate / (2·best): a step of the best rate takes half of what its slopes predict."""
    state, best = StepState(), 0.08
    ratio, rates = None, []
    settings = StepSettings(movement=best / 4 * factor, memory=0.9, queries=16)
    for _ in range(40):
        state = auto(state, Evidence(1.0, ratio=ratio), settings)
        rates.append(state.taken)
        ratio = 1 - state.taken / (2 * best)
    assert all(0.7 * best < rate < 1.5 * best for rate in rates[12:])
