"""A comparison runs every method from one start, says what each cost, and makes a page."""

import json

import pytest
from browser import needs_browser, open_page
from fleet import config
from typer.testing import CliRunner

from dandelion.cli.app import app
from dandelion.comparisons.curves import (
    CurvePoint,
    best_run,
    common_target,
    find_first_at,
    is_settled,
    smooth,
    verdicts,
)
from dandelion.comparisons.methods import (
    METHODS,
    SUITES,
    configurations,
    configure_methods,
    rates_around,
    rows_of,
)
from dandelion.comparisons.presentation import page
from shared.base.errors import ConfigError, UnknownNameError
from shared.base.files import code_digest
from shared.config.schema import Config

pytestmark = pytest.mark.slow

KEYS = ("dataset", "max-samples", "partitioner", "block-size", "eval-blocks", "num-clients",
        "queries", "zo-batch-size", "bp-batch-size", "bp-interval", "round-timeout",
        "wait-timeout")  # fmt: skip


def run(folder, *arguments, rounds=("num-rounds=3", "eval-interval=1")):
    small = config(folder).to_run_config()
    pairs = [f"{key}={small[key]}" for key in KEYS] + [*rounds]
    pairs.append(f"output-dir={folder}")
    options = [word for pair in pairs for word in ("--set", pair)]
    done = CliRunner().invoke(app, ["compare", "--name", "c", "--rates", "1", *options, *arguments])
    assert done.exception is None, done.exception
    return json.loads((folder / "c" / "comparison.json").read_text()), done.output


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory):
    """All methods, three rounds each."""
    folder = tmp_path_factory.mktemp("compare")
    return folder / "c", *run(folder, "--methods", ",".join(METHODS))


def test_every_method_starts_at_the_same_loss_and_says_what_it_cost(comparisons):
    folder, comparison, output = comparisons
    assert [row["name"] for row in comparison["methods"]] == [*METHODS]
    starts = {round(row["points"][0]["loss"], 5) for row in comparison["methods"]}
    assert len(starts) == 1
    for row in comparison["methods"]:
        assert [p["round"] for p in row["points"]] == [0, 1, 2, 3]
        assert row["totals"]["message"] > row["totals"]["payload"] > 0
        assert row["totals"]["forwards"] > 0
        assert row["peak_memory_bytes"] > row["round_memory_bytes"] >= 0
        assert row["name"] in output
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names >= {"comparison.json", "comparison.html", "comparison-message.png"}


def test_the_original_protocol_costs_full_parameters_down(comparisons):
    rows = {row["name"]: row for row in comparisons[1]["methods"]}
    each = rows["zo-dense"]["totals"]["payload"] / 3
    assert each > 4 * rows["zo-dense"]["parameters"]
    assert rows["zo"]["totals"]["payload"] < 0.01 * each
    assert rows["zo"]["digest"] == rows["zo-dense"]["digest"]


def test_a_budget_of_forwards_stops_every_method_at_about_as_many(tmp_path):
    comparison, _ = run(tmp_path, "--suite", "three-modes", "--forwards", "8")
    assert [row["totals"]["forwards"] for row in comparison["methods"]] == [9, 11, 11]
    assert [row["totals"]["round"] for row in comparison["methods"]] == [3, 3, 2]


def test_a_schedule_needs_rounds_to_fall_towards(tmp_path):
    options = ["--methods", "zo", "--seconds", "1", "--set", "lr-schedule=cosine"]
    done = CliRunner().invoke(app, ["compare", *options, "--set", f"output-dir={tmp_path}"])
    assert isinstance(done.exception, ConfigError)
    assert "set num-rounds as well" in str(done.exception)


def test_a_budget_alone_says_when_a_method_ends(tmp_path):
    comparison, _ = run(tmp_path, "--methods", "zo", "--forwards", "1000", rounds=())
    (row,) = comparison["methods"]
    assert row["totals"]["forwards"] == 1003  # q + 1, then 250 rounds of one more
    assert row["totals"]["round"] > Config().training.rounds


def point(round_, loss):
    return CurvePoint(round_, loss, round_, round_, round_, round_)


def test_a_dip_in_one_evaluation_is_neither_the_target_nor_an_arrival():
    steady = [point(k, loss) for k, loss in enumerate((5.0, 4.0, 3.5, 3.0, 2.9))]
    dip = [point(k, loss) for k, loss in enumerate((5.0, 4.5, 2.0, 4.2, 4.1))]
    assert smooth(steady)[:4] == [5.0, 4.0, 3.5, 3.0]  # what falls steadily counts as it is
    assert common_target([steady, dip]) == 4.1
    assert find_first_at(dip, 3.0) is None
    assert find_first_at(steady, 4.0) == steady[1]


def test_a_curve_that_spikes_has_not_settled_and_a_steady_rate_is_preferred_to_it():
    spiky = [point(k, loss) for k, loss in enumerate((5.5, 4.0, 3.1, 3.9, 2.8))]
    steady = [point(k, loss) for k, loss in enumerate((5.5, 4.2, 3.6, 3.2, 3.0))]
    flat = [point(k, 5.5) for k in range(5)]
    assert [is_settled(each) for each in (spiky, steady, flat)] == [False, True, False]
    assert best_run([spiky, steady, flat]) == 1
    assert best_run([spiky, flat]) == 0
    row = {"name": "fo", "first_order": True, "to_target": None, "settled": False}
    assert "fo did not settle" in verdicts([row], 3.0)[-1]


def test_rates_are_tried_around_the_given_one_and_scaled_together():
    (chosen,) = configurations("calibrate", "", ["learning-rate=0.02"], {}).values()
    rows = rates_around(chosen, 3)
    assert [*rows][1] == "calibrate"
    assert [c.optimizer.learning_rate for c in rows.values()] == pytest.approx(
        [0.02 / 10**0.5, 0.02, 0.02 * 10**0.5]
    )
    assert [c.bp.learning_rate for c in rows.values()] == pytest.approx(
        [0.5 / 10**0.5, 0.5, 0.5 * 10**0.5]
    )
    assert {c.training.local_learning_rate for c in rows.values()} == {0.0}
    assert [*rates_around(chosen, 1).values()] == [chosen]


def test_each_method_gets_the_best_of_its_rates_and_the_page_says_of_what(tmp_path):
    comparison, output = run(tmp_path, "--methods", "zo", "--rates", "3")
    (row,) = comparison["methods"]
    ends = [each["final_loss"] for each in row["rates"]]
    settled = [each["final_loss"] for each in row["rates"] if each["settled"]]
    assert len(ends) == 3
    assert row["final_loss"] in (settled or ends)
    assert "1 methods at 3 learning rates each: 3 runs" in output
    text = (tmp_path / "c" / "comparison.html").read_text()
    about = comparison["about"]
    assert {*about} == {"model", "data", "sites", "budget", "rates", "seed", "date", "code"}
    for value in (about["model"], about["date"], "topics", "the best of 3", code_digest().hex()):
        assert value in text
        assert value in output


def test_where_first_order_methods_win_is_said_first_and_who_never_arrives_last():
    def row(name, first_order, **cost):
        return {"name": name, "first_order": first_order, "to_target": cost or None}

    axes = ("round", "payload", "message", "forwards", "seconds")
    fo = row("fo", True, **dict.fromkeys(axes, 5.0) | {"payload": 900.0, "message": 900.0})
    zo = row("zo", False, **dict.fromkeys(axes, 50.0))
    said = verdicts([zo, fo, row("late", False)], 3.0)
    assert [("fo" in text) for text in said] == [True, True, True, False, False, False]
    assert said[-1] == "late never reached a loss of 3.000"


def test_suites_are_the_original_experiments():
    merged = configurations("", "merged", [], {})
    assert [c.zo.query_data for c in merged.values()] == ["fresh", "shared", "same"]
    assert all(c.bp.split_data for c in merged.values())
    assert [c.training.mode for c in configurations("", "three-modes", [], {}).values()] == [
        "fo", "zo", "instruct"]  # fmt: skip
    assert set(SUITES) == {"merged", "three-modes"}


def test_a_preset_gives_every_method_its_task():
    given = [("", "preset", "rotten-tomatoes")]
    configs = configure_methods(rows_of(["zo", "fo"], ""), given, {})
    assert {c.data.dataset for c in configs.values()} == {"rotten-tomatoes"}
    assert configs["fo"].optimizer.name == "adam"  # a method's own settings win


def test_a_preset_that_is_none_is_refused_by_the_command():
    done = CliRunner().invoke(app, ["compare", "--methods", "zo", "--preset", "tomatoes"])
    assert isinstance(done.exception, UnknownNameError)
    assert "rotten-tomatoes" in str(done.exception)


def test_a_setting_may_be_of_one_method():
    configs = configurations("zo,fo", "", ["seed=3", "zo:queries=7"], {})
    assert (configs["zo"].zo.queries, configs["fo"].zo.queries) == (7, 16)
    assert {c.training.seed for c in configs.values()} == {3}


@pytest.mark.parametrize(
    ("methods", "pairs", "error", "text"),
    [
        ("zo,sgd", [], UnknownNameError, "unknown method 'sgd'"),
        ("", [], ConfigError, "--methods or --suite expected"),
        ("zo", ["fo:seed=1"], UnknownNameError, "unknown method 'fo'; known: zo"),
        ("zo", ["seed"], ConfigError, "method:key=value expected, got 'seed'"),
    ],
)
def test_what_cannot_be_compared_is_refused(methods, pairs, error, text):
    with pytest.raises(error, match=text):
        configurations(methods, "", pairs, {})


def test_the_page_needs_no_network(comparisons):
    text = (comparisons[0] / "comparison.html").read_text()
    assert "Plotly.newPlot" in text
    assert not [
        tag for tag in ("<link", "<script src", "<img") if tag in text.partition("<body>")[2]
    ]
    hostile = page(comparisons[1] | {"verdicts": ["</script><!--<script>"]})
    assert (hostile.count("<script>"), hostile.count("</script>"), hostile.count("<!--<")) == (
        2,
        2,
        0,
    )


PROBE = """<script>addEventListener("load", async () => {
  const wait = () => new Promise(done => setTimeout(done, 600));
  const said = {points: document.querySelectorAll("#chart .trace").length};
  const first = () => chart.data[0].visible;
  for (const axis of Object.keys(comparison.axes)) {
    document.querySelector(`[data-axis=${axis}]`).click(); await wait();
    said[axis] = chart.data[0].x.join() === comparison.methods[0].points.map(p => p[axis]).join()
      && chart.layout.xaxis.title.text === comparison.axes[axis];
  }
  const toggle = chart.querySelector(".legendtoggle");
  for (const kind of ["mousedown", "mouseup"])
    toggle.dispatchEvent(new MouseEvent(kind, {bubbles: true}));
  await wait(); said.hidden = first();
  const out = document.createElement("pre");
  out.id = "said"; out.textContent = JSON.stringify(said); document.body.append(out);
});</script></body>"""


@pytest.mark.slow
@needs_browser
def test_the_page_works_in_a_browser(comparisons, tmp_path):
    """It draws, buttons change the axis, the legend hides a method, the console is empty."""
    file = tmp_path / "page.html"
    file.write_text((comparisons[0] / "comparison.html").read_text().replace("</body>", PROBE))
    options = ("--dump-dom", "--virtual-time-budget=20000")
    opened = open_page(file.as_uri(), tmp_path / "profile", *options)
    assert opened.complaints == []
    said = json.loads(opened.output.partition('<pre id="said">')[2].partition("</pre>")[0])
    assert said.pop("points") == len(METHODS)
    assert said.pop("hidden") == "legendonly"
    assert said == dict.fromkeys(comparisons[1]["axes"], True)
