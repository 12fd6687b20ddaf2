"""The terminal says where a run is, in words and units, and how to go on when it was stopped."""

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from dandelion.monitor import progress
from dandelion.monitor.progress import RunProgress, show_summary, time_text
from server.ledger.records import Evaluation
from server.ledger.summaries import Totals
from server.reporting.status_line import size_text
from shared.base.errors import ConfigError
from shared.config.schema import Config

SUMMARY = {
    "mode": "zo", "rounds": 300, "parameters": 124_864, "clients": 8, "queries": 16,
    "evaluation_loss_first": 5.4731592, "evaluation_loss_last": 3.2190239, "seconds": 187.3,
    "digest": "ab" * 16, "payload_bytes_up_per_client_round": 108.0,
    "payload_bytes_down_per_client_round": 1234.5, "message_bytes_up_per_client_round": 175.7,
    "message_bytes_down_per_client_round": 2240.0, "refused_replies": 3,
    "refusals": {"error": 2, "wrong digest": 1}, "skipped_rounds": 1, "ledger_bytes": 27_600,
}  # fmt: skip


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def report(loss=4.4321, rounds=100, folder="/runs/mine"):
    """What RunProgress reads of a report."""
    return SimpleNamespace(
        config=Config(num_rounds=rounds),
        folder=folder,
        ledger=SimpleNamespace(
            totals=lambda: Totals(96, 53_700, 1_240_000, 12.0, 3),
            evaluations=lambda: [Evaluation(0, 5.5), Evaluation(10, 4.34567)],
            scores=dict,
            metrics_of=lambda round_: SimpleNamespace(loss=loss) if loss else None,
        ),
    )


def terminal(width=80, is_terminal=False):
    return Console(file=io.StringIO(), width=width, force_terminal=is_terminal)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (812.4, "812 B"), (999.4, "999 B"), (999.6, "1.0 kB"), (3_400, "3.4 kB"),
     (1.25e6, "1.2 MB"), (5e9, "5.0 GB"), (1.234e13, "12,340.0 GB")],
)  # fmt: skip
def test_bytes_have_the_unit_that_fits(count, text):
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (0.84, "0.8 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"),
     (185, "3 min 05 s"), (3599.7, "1 h 00 min"), (7620, "2 h 07 min")],
)  # fmt: skip
def test_seconds_have_the_unit_that_fits(seconds, text):
    assert time_text(seconds) == text


def test_a_line_says_round_losses_bytes_and_time_left(clock):
    console = terminal()
    with RunProgress(console) as shown:
        shown(report(loss=None), 0)
        clock.now += 20
        shown(report(), 20)
    first, second = console.file.getvalue().splitlines()
    assert first == "round 0/100  held out 4.346  up 53.7 kB  down 1.2 MB"
    done = "round 20/100  loss 4.432  held out 4.346  up 53.7 kB  down 1.2 MB"
    assert second == f"{done}  < 1:20 left"


def test_plain_lines_come_now_and_then_and_at_the_end(clock):
    console = terminal()
    with RunProgress(console) as shown:
        for round_ in range(101):
            shown(report(), round_)
            clock.now += 1
    said = [int(line.split()[1].split("/")[0]) for line in console.file.getvalue().splitlines()]
    assert said == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99, 100]


def test_rounds_that_a_resumed_run_had_do_not_shorten_the_time_left(clock):
    console = terminal()
    with RunProgress(console) as shown:
        shown(report(), 90)
        clock.now += 60
        shown(report(), 91)
    assert console.file.getvalue().rstrip().endswith("  < 9:00 left")


def test_a_long_time_left_has_hours(clock):
    console = terminal()
    with RunProgress(console) as shown:
        shown(report(), 0)
        clock.now += 3600 * 2 + 120
        shown(report(), 50)
    assert console.file.getvalue().rstrip().endswith("  < 2:02:00 left")


@pytest.mark.parametrize("width", [80, 140])
def test_a_terminal_has_one_line_that_moves_and_fits(clock, width):
    console = terminal(width, is_terminal=True)
    with RunProgress(console) as shown:
        shown(report(), 10)
        clock.now += 10
        shown(report(), 20)
    said = console.file.getvalue()
    assert "loss 4.432  held out 4.346  up 53.7 kB  down 1.2 MB" in said
    assert "…" not in said
    assert ("━" in said) == (width == 140)


def test_a_run_that_is_stopped_says_how_to_go_on():
    console = terminal()

    def interrupted():
        with RunProgress(console) as shown:
            shown(report(folder="/runs & all/mine"), 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    said = console.file.getvalue()
    assert "stopped; continue with: dandelion run --resume '/runs & all/mine'\n" in said


def test_a_run_that_never_began_says_nothing_of_going_on():
    console = terminal()

    def refused():
        with RunProgress(console):
            raise ConfigError

    with pytest.raises(ConfigError):
        refused()
    assert console.file.getvalue() == ""


def test_the_table_has_units_and_groups_and_no_long_numbers(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "loss.png").touch()
    console = terminal()
    show_summary(console, tmp_path)
    said = console.file.getvalue()
    for text in (
        "zo, q = 16",
        "124,864 parameters",
        "300 in 3 min 07 s, 0.6 s each",
        "5.473 → 3.219 nats",
        "108 B up, 1.2 kB down per client and round",
        "176 B up, 2.2 kB down per client and round",
        "27.6 kB of entries",
        "3 (2 error, 1 wrong digest)",
        "ab" * 16,
    ):
        assert text in said
    assert said.count("├") == 3
    assert f"picture  {tmp_path / 'loss.png'}\n" in said
    assert "\nmodel    " not in said  # it was not saved


def test_a_run_that_was_never_evaluated_says_so(tmp_path):
    nothing = {"evaluation_loss_first": None, "evaluation_loss_last": None, "rounds": 0}
    (tmp_path / "summary.json").write_text(json.dumps({**SUMMARY, **nothing}))
    console = terminal()
    show_summary(console, tmp_path)
    assert "not evaluated → not evaluated" in console.file.getvalue()
