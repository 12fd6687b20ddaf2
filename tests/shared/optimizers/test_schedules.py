"""The rate climbs through the warm-up and falls as the schedule says."""

from itertools import pairwise

import pytest

from shared.base.errors import UnknownNameError
from shared.optimizers.schedules import SCHEDULES, learning_rate


def rates(schedule, warmup_rounds=4, rounds=20, final_fraction=0.0):
    return [
        learning_rate(
            round_,
            rate=0.5,
            schedule=schedule,
            warmup_rounds=warmup_rounds,
            rounds=rounds,
            final_fraction=final_fraction,
        )
        for round_ in range(1, rounds + 1)
    ]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_warm_up_is_linear_and_ends_at_the_rate(schedule):
    assert rates(schedule)[:5] == [0.125, 0.25, 0.375, 0.5, 0.5]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warm_up_the_first_round_has_the_full_rate(schedule):
    assert rates(schedule, warmup_rounds=0)[0] == 0.5


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("final_fraction", [0.0, 0.1])
def test_after_the_warm_up_the_rate_falls_and_stays_above_its_floor(schedule, final_fraction):
    falling = rates(schedule, final_fraction=final_fraction)[4:]
    assert all(later < earlier for earlier, later in pairwise(falling))
    assert falling[-1] > 0.5 * final_fraction


def test_constant_stays():
    assert set(rates("constant")[3:]) == {0.5}


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_half_way_is_half_way(schedule):
    assert rates(schedule)[12] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("schedule", "rate"), [("constant", 1.0), ("linear", 0.1), ("cosine", 0.1)]
)
@pytest.mark.parametrize("round_", [11, 12, 500])
def test_past_the_last_round_the_rate_is_the_floor(schedule, rate, round_):
    got = learning_rate(
        round_, rate=1.0, schedule=schedule, warmup_rounds=2, rounds=10, final_fraction=0.1
    )
    assert got == pytest.approx(rate)


def test_a_warm_up_longer_than_the_run_just_climbs():
    assert rates("cosine", warmup_rounds=40)[-1] == 0.25


def test_an_unknown_schedule_names_the_known_ones():
    with pytest.raises(UnknownNameError, match="'step'; known: constant, cosine, linear"):
        rates("step")
