"""The page about classes, answers and numbers: its tables and commands, as they are written."""

import csv
import json
import shlex
import sys

import pytest
from page_runs import blocks_of, shrink

from dandelion.cli.app import entry

PAGE = "docs/how-to/classification.md"
COPIES = 12  # of each row of a table of the page, so that there is something to hold out
pytestmark = [  # the reader of datasets leaves CSV files open
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def tables():
    return [block.text.splitlines() for block in blocks_of(PAGE) if block.kind == "csv"]


def commands():
    blocks = [block for block in blocks_of(PAGE) if not block.kind]
    return [line for block in blocks for line in block.lines if line.startswith("dandelion ")]


def type_in(line, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dandelion", *shrink(line)])
    with pytest.raises(SystemExit) as caught:
        entry()
    assert not caught.value.code, line


def write_table(folder, name, lines):
    (folder / name).mkdir()
    text = "\n".join([lines[0], *lines[1:] * COPIES])
    (folder / name / f"{name}.csv").write_text(text + "\n")


@pytest.fixture
def tables_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))
    for name, lines in zip(("messages", "quiz", "stays"), tables(), strict=True):
        write_table(tmp_path, name, lines)
    return tmp_path


@pytest.mark.slow
def test_the_commands_of_the_page_train_on_its_tables(tables_here, monkeypatch):
    for line in commands():
        type_in(f"{line} --set block-size=64", monkeypatch)
    words = [shlex.split(line) for line in commands()]
    names = [each[each.index("--name") + 1] for each in words if each[1] == "run"]
    for name in names:
        assert json.loads((tables_here / "runs" / name / "summary.json").read_text())["rounds"] == 3
    with (tables_here / "runs" / "intents" / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["card arrival", "card lost", "account limit"]
    assert (tables_here / "runs" / "intents" / "confusion.png").is_file()
