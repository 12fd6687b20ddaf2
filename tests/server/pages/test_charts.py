"""Curves as SVG: where points lie, and that every number is in the table too."""

import math
import re

import pytest

from server.pages.charts import HEIGHT, MOST_POINTS, WIDTH, Axis, Figure, Series, range_of

FALLING = {0: 4.0, 1: 3.0, 2: 2.0}
SPENT = (0.0, 100.0, 5000.0)


def figure(*series, spent=SPENT, rewinds=()):
    return Figure("Loss", "nats", series, spent, rewinds).html()


def points(text):
    return [
        [tuple(map(float, pair.split(","))) for pair in line.split()]
        for line in re.findall(r'points="([^"]*)"', text)
    ]


def test_a_falling_curve_goes_right_and_down_in_both_panels():
    against_rounds, against_bytes = points(figure(Series("held out", "held-out", FALLING)))
    for panel in (against_rounds, against_bytes):
        xs, ys = zip(*panel, strict=True)
        assert list(xs) == sorted(set(xs))
        assert list(ys) == sorted(set(ys))  # SVG counts downwards
        assert all(0 <= x <= WIDTH for x in xs)
        assert all(0 <= y <= HEIGHT for y in ys)
    assert against_rounds[1][0] - against_rounds[0][0] == pytest.approx(
        against_rounds[2][0] - against_rounds[1][0]
    )
    assert against_bytes[1][0] - against_bytes[0][0] == pytest.approx(
        (against_bytes[2][0] - against_bytes[0][0]) / 50, abs=0.11
    )


def test_a_loss_that_is_not_finite_breaks_the_curve_and_stays_in_the_table():
    text = figure(Series("held out", "held-out", {0: 4.0, 1: math.inf, 2: 2.0}))
    assert len(points(text)) == 4  # two stretches in each panel
    assert re.findall(r'<td class="number">(inf|[\d.,]+)</td>', text)[1::2] == ["4", "inf", "2"]


def test_a_long_curve_is_thinned_out_and_keeps_its_ends():
    count = 50_000
    values = {r: 5.0 - r / count for r in range(1, count + 1)}
    text = figure(Series("at the sites", "sites", values), spent=range(count + 1))
    first, _ = points(text)
    assert len(first) <= MOST_POINTS + 2
    assert first[-1][0] > first[-2][0] > WIDTH / 2
    assert len(text) < 100_000


def test_the_picture_says_in_words_what_it_shows():
    text = figure(Series("held out", "held-out", FALLING), rewinds=(1,))
    assert 'aria-label="Loss against round. held out: from 4 to 2"' in text
    assert text.count("<title>rewind</title>") == 2
    assert "round 1, held out: 3" in text


def test_no_curve_at_all_is_said():
    text = figure(Series("at the sites", "sites", {1: math.nan, 2: math.nan}))
    assert "at the sites: no value" in text
    assert points(text) == []


@pytest.mark.parametrize(("low", "high"), [(0, 1), (4.96, 5.01), (-3, 2e9), (1e-9, 3e-9)])
def test_ticks_are_few_round_and_inside(low, high):
    ticks = Axis("", low, high).ticks
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-12 <= tick <= high * (1 + 1e-9) for tick in ticks)
    assert all(len(f"{tick:.6g}") <= 7 for tick in ticks)


def test_a_flat_curve_has_a_range():
    assert range_of("", [2.0, 2.0]).low < 2.0 < range_of("", [2.0, 2.0]).high
    assert range_of("", [0.0]).high > 0
    assert range_of("", []).ticks
