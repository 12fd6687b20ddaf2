"""The time left is right from the second round on, whatever the first and evaluations take."""

from itertools import islice

import pytest

from dandelion.monitor.time_left import TimeLeft, time_left_text

# Seconds of the first 30 rounds of the demo, as its ledger recorded them.
RECORDED = (
    1.47, 0.62, 0.53, 0.64, 0.64, 0.62, 0.59, 0.68, 0.58, 0.60, 0.57, 0.54, 0.61, 0.61, 0.55,
    0.51, 0.50, 0.51, 0.47, 0.48, 0.56, 0.55, 0.53, 0.63, 0.56, 0.55, 0.52, 0.53, 0.51, 0.48,
)  # fmt: skip


def after_each(times, interval, first=0):
    """What was estimated after each round, and what it took in fact."""
    left, now = TimeLeft(first + len(times), interval), 50.0
    left.note(first, now)
    for number, seconds in enumerate(times):
        now += seconds
        left.note(first + number + 1, now)
        yield left, left.seconds(), sum(times[number + 1 :])


@pytest.mark.parametrize("start", [1.47, 9.0, 40.0])  # with warm caches, and with cold ones
def test_a_recorded_run_is_estimated_from_its_second_round_on(start):
    pairs = [*after_each((start, *RECORDED[1:]), interval=0)]
    for left, estimated, real in pairs[1:-1]:
        assert not left.is_bound
        assert estimated == pytest.approx(real, rel=0.2)


def test_the_first_round_alone_gives_a_bound():
    left, estimated, real = next(after_each(RECORDED, interval=0))
    assert left.is_bound
    assert time_left_text(left) == "< 0:43 left"
    assert estimated > real


def test_evaluations_are_counted_as_often_as_they_will_come():
    times = [20.0] + [30.0 if round_ % 5 == 0 else 2.0 for round_ in range(2, 41)]
    pairs = [*after_each(times, interval=5)]
    for _, estimated, real in pairs[4:-1]:  # from the first evaluation on
        assert estimated == pytest.approx(real)
    assert pairs[3][1] == 2.0 * 36  # before, an evaluation is not known to take longer


def test_rounds_that_are_all_evaluated_count_as_they_are():
    assert [round(estimate) for _, estimate, _ in [*after_each([9.0, *[2.0] * 9], 1)][1:-1]] == [
        16, 14, 12, 10, 8, 6, 4, 2,
    ]  # fmt: skip


def test_a_resumed_run_counts_its_own_rounds_alone():
    *_, (left, estimated, _) = islice(after_each([5.0, 1.0, 1.0, 1.0], 0, first=90), 3)
    assert estimated == 1.0
    assert time_left_text(left) == "0:01 left"


def test_a_pace_that_changes_is_followed():
    times = [1.0] * 30 + [3.0] * 40
    assert [*after_each(times, 0)][50][1] == pytest.approx(3.0 * 19)


def test_nothing_is_said_before_the_first_round_and_after_the_last():
    left = TimeLeft(2, 0)
    assert time_left_text(left) == ""
    left.note(0, 1.0)
    assert time_left_text(left) == ""
    left.note(2, 5.0)
    assert time_left_text(left) == ""
