"""The examples are what they say: their settings are valid, and each runs to its end.

examples/hospital has the commands of docs/tutorials/federation.md.
"""

import csv
import json
import os
import runpy
import subprocess
import sys
import tomllib

import pytest
from pages import ROOT

from dandelion.engines.flower_simulation import free_port
from dandelion.settings.gather import gather

FILES = sorted(path.name for path in (ROOT / "examples").glob("*.toml"))
every_file = pytest.mark.parametrize("name", FILES)


@pytest.fixture
def environment(tmp_path):
    """A ``dandelion`` command on the path that runs this tree."""
    command = tmp_path / "bin" / "dandelion"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -W ignore -m dandelion "$@"\n')
    command.chmod(0o755)
    python = command.with_name("python")
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def end_losses(folder):
    """The first and the last held-out loss of a run."""
    summary = json.loads((folder / "summary.json").read_text())
    return summary["evaluation_loss_first"], summary["evaluation_loss_last"]


def call(words, environment, folder):
    done = subprocess.run(
        words, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", sorted((ROOT / "examples").rglob("pyproject.toml")), ids=str)
def test_no_app_asks_an_index_for_dandelion(file):
    """Flower would install what has that name there: it is another project."""
    needs = tomllib.loads(file.read_text())["project"]["dependencies"]
    assert not [each for each in needs if each.startswith("dandelion")]


@every_file
def test_the_settings_of_an_example_are_valid(name):
    config = gather(ROOT / "examples" / name, [])
    assert config.to_run_config()["num-rounds"] == 10


@pytest.mark.slow
@every_file
def test_an_example_trains_to_its_end(name, environment, tmp_path):
    words = ["dandelion", "run", "--config", str(ROOT / "examples" / name), "--name", "example"]
    call(words, environment, tmp_path)
    assert (tmp_path / "runs" / "example" / "summary.json").exists()


@pytest.mark.slow
def test_the_example_of_an_audit_verifies_and_rebuilds(environment, tmp_path):
    call([str(ROOT / "examples" / "audit.sh"), "results"], environment, tmp_path)
    assert (tmp_path / "results" / "model-5" / "model.safetensors").exists()


HOSPITAL = ROOT / "examples" / "hospital"


def test_the_hospitals_notes_are_the_same_on_every_call_and_differ_between_sites(tmp_path):
    make = runpy.run_path(str(HOSPITAL / "make_notes.py"))["main"]
    for name in ("a", "b"):
        make(tmp_path / name)
    tables = {}
    for place, rows in (("north", 160), ("south", 96), ("held-out", 128)):
        files = [tmp_path / name / place / "notes.csv" for name in ("a", "b")]
        assert files[0].read_bytes() == files[1].read_bytes()
        with files[0].open(newline="") as file:
            tables[place] = list(csv.DictReader(file))
        assert len(tables[place]) == rows
        assert {row["outcome"] for row in tables[place]} == {"ward", "home"}
    shares = {
        place: sum(row["outcome"] == "ward" for row in rows) / len(rows)
        for place, rows in tables.items()
    }
    assert shares["north"] > shares["south"] + 0.1


@pytest.mark.slow
def test_the_hospitals_learn_in_the_rehearsal(environment, tmp_path):
    call([str(HOSPITAL / "simulate.sh"), "out"], environment, tmp_path)
    first, last = end_losses(tmp_path / "out" / "runs" / "rehearsal")
    assert last < 0.95 * first


@pytest.mark.deployment
def test_the_hospitals_learn_over_the_wire(environment, tmp_path):
    words = [str(HOSPITAL / "federate.sh"), "out", str(free_port())]
    call(words, environment, tmp_path)
    first, last = end_losses(tmp_path / "out" / "server" / "runs" / "federated")
    assert last < 0.95 * first
