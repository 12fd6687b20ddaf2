"""Tables keep every name and number whole, at any width and through a pipe, and can be JSON."""

import ast
import inspect
import io
import json
import math
import sys

import pytest
from rich.console import Console, Group
from rich.table import Column, Table
from typer.main import get_command
from typer.testing import CliRunner

from dandelion.bench.rows import BenchRow
from dandelion.cli import bench as bench_cli
from dandelion.cli import console as cli_console
from dandelion.cli import server as server_cli
from dandelion.cli import sweep as sweep_cli
from dandelion.cli.app import app
from dandelion.monitor import tables
from dandelion.sweeps.cells import CellResult
from shared.data.documents import DATASETS

NAME, COUNT = "a-name-of-forty-characters-that-has-no-space", "9,491,234,567,890"
TEXT = "many words that may well be wrapped where a terminal is too narrow for all of them"


def table():
    made = Table("name", "what", Column("count", justify="right"), title="all")
    made.add_row(NAME, TEXT, COUNT)
    made.add_row("b\\[1]", "x", "12.5 %")
    return made


def printed(width, terminal, what):
    out = io.StringIO()
    tables.print_table(Console(file=out, width=width, force_terminal=terminal), what)
    return out.getvalue()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_terminal_of_any_width_gets_whole_names_and_numbers(width):
    text = printed(width, True, table())
    assert NAME in text
    assert COUNT in text
    assert "…" not in text


def test_a_pipe_gets_a_row_in_one_line():
    text = printed(80, False, Group("a line", table()))
    assert text.startswith("a line\n")
    (row,) = [line for line in text.splitlines() if NAME in line]
    assert TEXT in row
    assert COUNT in row


def test_rows_as_json_have_numbers_where_columns_have_them():
    assert tables.rows_of(table()) == [
        {"name": NAME, "what": TEXT, "count": 9491234567890},
        {"name": "b[1]", "what": "x", "count": "12.5 %"},
    ]


PRINTERS = {"show_table", "print_table", "show_run", "markdown", "check_on_device"}


def commands(group, words=()):
    """Every command below a group: its words, itself, and the function that it calls."""
    for name, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from commands(each, (*words, name))
        if each.callback is not None:
            yield (*words, name), each


def calls(function):
    """Names of all that a function calls, through the functions of its own module."""
    function = inspect.unwrap(function)
    source = ast.parse(inspect.getsource(sys.modules[function.__module__]))
    bodies = {node.name: node for node in source.body if isinstance(node, ast.FunctionDef)}
    seen, todo = set(), [function.__name__]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo += [node.id for node in ast.walk(bodies[name]) if isinstance(node, ast.Name)
                 ] if name in bodies else []  # fmt: skip
    return seen


def test_every_command_that_prints_a_table_has_json():
    printing, without = [], []
    for words, command in commands(get_command(app)):
        if PRINTERS & calls(command.callback):
            printing.append(" ".join(words))
            options = {name for each in command.params for name in each.opts}
            without += [] if "--json" in options else [" ".join(words)]
    assert without == []
    assert {"run", "status", "compare", "preflight", "server run", "server status", "data inspect",
            "ledger show", "bench query", "gpu-check", "privacy plan", "client budget"
            } <= set(printing)  # fmt: skip


SHORT = [
    *("--set", "dataset=topics", "--set", "max-samples=6", "--set", "num-clients=2"),
    *("--set", "num-rounds=2", "--set", "queries=2", "--set", "block-size=16"),
    *("--set", "eval-blocks=4", "--set", "keep-disk=0", "--set", "threads=1"),
]


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["run", "--set", "save-model=false"], {"rounds", "digest", "refusals"}),
        (["preflight"], {"verdict", "eps", "suggestion"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_that_trains_prints_json_alone(tmp_path, words, keys):
    words = [*words, *SHORT, "--set", f"output-dir={tmp_path}", "--json"]
    done = CliRunner().invoke(app, words)
    assert keys <= json.loads(done.stdout).keys()


def test_a_comparison_is_printed_as_json_alone(tmp_path, monkeypatch):
    def compare(plan, given, say):
        say("a line of progress")
        return {"target_loss": math.nan, "methods": [{"name": "zo"}]}, [tmp_path / "report.html"]

    monkeypatch.setattr("dandelion.comparisons.session.run_comparison", compare)
    done = CliRunner().invoke(app, ["compare", "--methods", "zo,fo", "--json"])
    assert json.loads(done.stdout) == {"target_loss": None, "methods": [{"name": "zo"}]}
    assert "a line of progress" in done.stderr


def test_a_sweep_prints_its_cells_as_json_alone(tmp_path, monkeypatch):
    results = [CellResult("queries=1", {"queries": 1}, "done", final_loss=math.inf)]
    monkeypatch.setattr(sweep_cli, "_train", lambda *about: results)
    monkeypatch.setattr("dandelion.sweeps.plan.begin_sweep", lambda plan, name: (tmp_path, plan))
    done = CliRunner().invoke(app, ["sweep", "--grid", "queries=1", "--json"])
    (cell,) = json.loads(done.stdout)
    assert (cell["name"], cell["final_loss"]) == ("queries=1", None)


def test_a_servers_status_is_one_document(tmp_path, monkeypatch):
    answers = {"supernode": {"nodes": [{"node-id": "7", "status": "online"}]},
               "ls": {"runs": [{"run-id": "9", "status": "running"}]}}  # fmt: skip
    monkeypatch.setattr(server_cli, "run_flwr", lambda words, environment: answers[words[0]])
    monkeypatch.setattr(server_cli, "program_path", lambda name: name)
    done = CliRunner().invoke(app, ["server", "status", "--home", str(tmp_path), "--json"])
    shown = json.loads(done.stdout)
    assert shown["nodes"] == answers["supernode"]["nodes"]
    assert shown["runs"] == answers["ls"]["runs"]
    assert (shown["server process"], shown["sites"]) == (None, [])


def test_a_benchmark_prints_its_rows_alone_as_json(capsys):
    bench_cli.show("a title", [BenchRow("kernel", 0.5, 2.0, "")], bench_cli.STDOUT)
    assert json.loads(capsys.readouterr().out) == [
        {"name": "kernel", "seconds": 0.5, "ratio": 2.0, "note": ""}
    ]


@pytest.mark.parametrize(
    ("words", "title"), [(["data", "list"], "name"), (["models"], "model"), (["settings"], "key")]
)
def test_a_command_prints_its_table_as_json_alone(words, title):
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exception is None, done.exception
    rows = json.loads(done.output)
    assert all(row[title] for row in rows)


def test_the_names_of_data_sets_can_be_copied_from_a_pipe():
    output = CliRunner().invoke(app, ["data", "list"]).output
    assert [name for name in DATASETS.names() if name not in output] == []


def test_what_a_command_quotes_cannot_command_a_terminal(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(cli_console, "console", Console(file=out, width=80))
    cli_console.say("first\nsecond \x1bc")
    assert out.getvalue() == "first\nsecond \\x1bc\n"
