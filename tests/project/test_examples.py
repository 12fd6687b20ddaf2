"""The examples are what they say: their settings are valid, and each runs to its end."""

import os
import subprocess
import sys

import pytest
from pages import ROOT

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
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def call(words, environment, folder):
    done = subprocess.run(
        words, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
