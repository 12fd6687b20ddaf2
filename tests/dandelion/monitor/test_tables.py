"""Tables keep every name and number whole, at any width and through a pipe, and can be JSON."""

import io
import json

import pytest
from rich.console import Console, Group
from rich.table import Column, Table
from typer.testing import CliRunner

from dandelion.cli import console as cli_console
from dandelion.cli.app import app
from dandelion.monitor import tables
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
