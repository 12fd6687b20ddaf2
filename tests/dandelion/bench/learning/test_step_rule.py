"""The rule of the step against the best of five rates: which share of its fall, and how it says."""

import json
from math import inf

import pytest
from typer.testing import CliRunner

from dandelion.bench.learning.learning import QUICK
from dandelion.bench.learning.race import Trial, configuration, methods_of
from dandelion.bench.learning.race_points import RaceCurve, RacePoint
from dandelion.bench.learning.step_rule import (
    FIXED_CURVES,
    RULE_CURVES,
    STEP_TASKS,
    StepRow,
    markdown_of,
    step_rule,
    write_rows,
)
from dandelion.cli.bench import app
from shared.base.errors import UnknownNameError

DEMO = STEP_TASKS["demo"]


def curve(method, rate, seed, end, rewinds=0):
    costs = dict.fromkeys(("seconds", "payload_up", "payload", "message", "examples"), 1.0)
    points = [RacePoint(round=r, loss=loss, evaluations=r, **costs) for r, loss in ((0, 5.0), (9, end))]  # fmt: skip  # noqa: E501
    return RaceCurve(method, "", rate, seed, points, rewinds=rewinds)


def curves(rule=(4.2, 4.1, 4.4), rewinds=0):
    return [
        *(curve(RULE_CURVES, None, seed, end, rewinds) for seed, end in enumerate(rule, 1)),
        *(curve(FIXED_CURVES, rate, 1, end) for rate, end in ((4.0, inf), (1.0, 4.0), (0.25, 4.5))),
        *(curve(FIXED_CURVES, 1.0, seed, 4.0) for seed in (2, 3)),
    ]


def test_a_share_is_the_fall_by_the_rule_over_the_fall_at_the_best_rate():
    row = StepRow.of(DEMO, 4, curves())
    assert (row.rate, row.rounds, row.at_edge) == (1.0, 9, False)
    assert row.shares == pytest.approx([0.8, 0.9, 0.6])
    assert not row.is_enough
    text = markdown_of([row])
    assert "| demo | 124,864 | 4 | 9 | 1 | 1.0000 | 0.8000 | 80% (80%, 90%, 60%) | 0 |" in text


@pytest.mark.parametrize(("rewinds", "enough"), [(0, True), (1, False)])
def test_enough_is_85_percent_in_the_median_and_no_rewind(rewinds, enough):
    row = StepRow.of(DEMO, 0, curves((4.14, 4.1, 4.9), rewinds))
    assert row.is_enough is enough
    assert ("**86%**" in markdown_of([row])) is enough
    assert "| all |" in markdown_of([row])


def test_a_best_rate_at_the_edge_is_named():
    at_edge = [c for c in curves() if c.rate != 0.25] + [curve(FIXED_CURVES, 0.25, 1, 3.0)]
    row = StepRow.of(DEMO, 4, [c for c in at_edge if c.rate != 1.0 or c.seed == 1])
    assert row.rate == 0.25
    assert "0.25 (edge)" in markdown_of([StepRow.of(DEMO, 4, at_edge[:1] + at_edge[3:])])


def test_the_two_ways_differ_in_the_rate_alone(tmp_path):
    for task in (STEP_TASKS["demo"], STEP_TASKS["full"]):
        problem = task.problem(8)
        rule, fixed = (
            configuration(problem, method, task.rate if method.rate else None, 1, Trial(tmp_path))
            for method in methods_of(problem, (RULE_CURVES, FIXED_CURVES))
        )
        changed = rule.differences(fixed)
        assert {line.split()[0].rstrip(":") for line in changed} <= {"step", "learning-rate"}
        assert (
            rule.training.rounds
            == fixed.training.rounds
            == task.evaluations // (1 + fixed.zo.queries)
        )


def test_a_small_race_is_run_and_written(tmp_path):
    more = {**QUICK, "queries": 3}
    lines = list[str]()
    trial = Trial(tmp_path, seeds=2, factors=(1.0, 4.0), evaluations=12, more=more)
    (row,) = step_rule(["demo"], [2], trial, lines.append)
    assert (len(row.fixed), len(row.rule), row.rounds, row.batch) == (2, 2, 3, 2)
    (written,) = json.loads((tmp_path / "step-rule.json").read_text())
    assert written["shares"] == row.shares
    assert (tmp_path / "step-rule.md").read_text() == markdown_of([row])


def test_rows_of_earlier_calls_stay_in_the_table(tmp_path):
    small, large = (StepRow.of(DEMO, batch, curves()) for batch in (4, 16))
    write_rows([small, large], tmp_path)
    write_rows([again := StepRow.of(DEMO, 4, curves((4.0, 4.0, 4.0)))], tmp_path)
    assert (tmp_path / "step-rule.md").read_text() == markdown_of([large, again])


def test_a_task_that_is_not_known_is_refused_by_name(tmp_path):
    with pytest.raises(UnknownNameError, match="known: demo, full"):
        step_rule(["demi"], [], Trial(tmp_path), print)
    result = CliRunner().invoke(app, ["step-rule", "--task", "demi", "--out", str(tmp_path)])
    assert isinstance(result.exception, UnknownNameError)
