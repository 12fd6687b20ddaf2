"""Every benchmark is a command, and shows its rows as a table and as JSON."""

import ast
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from dandelion import bench
from dandelion.bench.rows import BenchRow, alternate
from dandelion.cli.bench import app, show
from dandelion.privacy.attacks.report import AttackRow
from shared.base.errors import ConfigError

ROWS = [
    BenchRow("ours", 0.001234, 0.1, "20 M parameters"),
    BenchRow("theirs", 0.01234, 1.0, "the same"),
]


def test_every_benchmark_has_a_command_of_its_name():
    commands = {command.callback.__name__ for command in app.registered_commands}
    for path in Path(bench.__path__[0]).glob("*.py"):
        functions = [n.name for n in ast.parse(path.read_text()).body if hasattr(n, "name")]
        if path.stem in functions:
            assert path.stem in commands


def test_rows_are_shown_as_a_table_and_written_as_json(tmp_path, capsys):
    show("directions", ROWS, tmp_path / "rows.json")
    out = capsys.readouterr().out
    assert "directions" in out
    assert "0.001234" in out
    assert "20 M parameters" in out
    read = json.loads((tmp_path / "rows.json").read_text())
    assert [BenchRow(**row) for row in read] == ROWS


def test_without_a_file_nothing_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    show("directions", ROWS, None)
    assert "theirs" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


ELSEWHERE = {
    "privacy": ["dandelion.privacy.cost_in_time", "dandelion.privacy.cost_of_sums"],
    "idle": ["dandelion.deployment.idle_cost"],
}
RACES = ("learning", "step_rule")  # run for minutes; what they print is tested beside them
RATIOS = [each for each in app.registered_commands if each.callback.__name__ not in RACES]


@pytest.mark.parametrize("command", RATIOS, ids=lambda c: c.callback.__name__)
def test_a_command_shows_what_its_benchmark_measured(command, monkeypatch):
    name = command.callback.__name__
    for module in ELSEWHERE.get(name, [f"dandelion.bench.{name}"]):
        fake = ModuleType(module)
        setattr(fake, module.rpartition(".")[2], lambda *given: ROWS)
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    done = CliRunner().invoke(app, [name.replace("_", "-")])
    assert done.exit_code == 0
    assert "theirs" in done.output


def test_attacks_and_guards_are_options_of_the_benchmark_of_privacy(tmp_path, monkeypatch):
    row = AttackRow("inversion", "image error", "0.007", "0.9", "mean image: 0.57")
    report = "dandelion.privacy.attacks.report.measure_attacks"
    monkeypatch.setattr(report, lambda say: [row])
    monkeypatch.setattr("dandelion.privacy.guard_time.cost_of_guard", lambda: ROWS)
    shown = CliRunner().invoke(app, ["privacy", "--attacks", "--json", str(tmp_path / "rows")])
    assert "mean image" in shown.output
    assert json.loads((tmp_path / "rows").read_text())[0]["private"] == "0.9"
    printed = CliRunner().invoke(app, ["privacy", "--attacks", "--json", "-"])
    assert json.loads(printed.stdout)[0]["plain"] == "0.007"
    assert "theirs" in CliRunner().invoke(app, ["privacy", "--guard"]).output


@pytest.mark.parametrize("option", [["--device", "cuda"], ["--json", "rows.json"]])
def test_an_option_before_a_command_is_refused(option):
    done = CliRunner().invoke(app, [*option, "query"])
    assert isinstance(done.exception, ConfigError)
    assert "options go behind the command: dandelion bench query" in str(done.exception)


def test_rivals_take_turns_and_the_first_turn_does_not_count():
    calls = []
    times = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert [len(seconds) for seconds in times.values()] == [3, 3]
