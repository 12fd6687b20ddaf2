"""The tutorial about one's own model and the example of MNIST do what they say."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from pages import ROOT

from shared.packages.package import CARRIERS, is_cached
from shared.problem.load import load_problem
from shared.training.oracle import Oracle
from shared.training.validate import configure

PAGE = ROOT / "docs" / "tutorials" / "your-own-model.md"
EXAMPLE = ROOT / "examples" / "own_model"
OWN_LINES = 25


def blocks(kind):
    """The blocks of the page that are of one kind."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return [block for name, block in fences if name == kind]


def dandelion(words, folder):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "dandelion", *words], cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_commands_of_the_tutorial_train_verify_and_replay(tmp_path):
    (tmp_path / "sensors.py").write_text(blocks("python")[0])
    for line in blocks("")[0].splitlines():
        dandelion(shlex.split(line)[1:], tmp_path)
    summary = json.loads((tmp_path / "runs" / "sensors" / "summary.json").read_text())
    assert summary["evaluation_loss_last"] < summary["evaluation_loss_first"]
    assert summary["evaluation_accuracy_last"] > 0.5
    assert (tmp_path / "model-30" / "model.safetensors").exists()


@pytest.mark.slow
def test_sites_of_the_tutorial_load_examples_of_their_own(tmp_path):
    (tmp_path / "wards.py").write_text(
        blocks("python")[0].partition("problem = ")[0]
        + blocks("python")[1]
        + "\n\nproblem = Problem(model=lambda: nn.Linear(6, 2), examples=examples, loss=loss,\n"
        "                  evaluation=lambda: readings(2, 50))\n"
    )
    words = ["run", "--app", "wards:problem", "--name", "wards", "--rounds", "2", "--clients", "3"]
    dandelion(words, tmp_path)
    assert (tmp_path / "runs" / "wards" / "summary.json").exists()


def test_the_example_is_short():
    """Blank lines, imports and docstrings are none of one's own lines."""
    body = re.sub(r'""".*?"""', "", (EXAMPLE / "digits.py").read_text(), flags=re.S)
    lines = [line for line in body.splitlines() if line.strip()]
    own = [line for line in lines if not re.match(r"(from|import) ", line)]
    assert len(own) <= OWN_LINES


@pytest.mark.slow
@pytest.mark.skipif(not is_cached(CARRIERS["mnist"]), reason="MNIST is not in the cache")
def test_the_example_trains_the_network_of_its_readme(tmp_path, monkeypatch):
    words = ["run", "--config", "settings.toml", "--name", "digits", "--rounds", "2"]
    words += ["--set", f"output-dir={tmp_path}", "--queries", "2", "--set", "eval-blocks=100"]
    dandelion(words, EXAMPLE)
    summary = json.loads((tmp_path / "digits" / "summary.json").read_text())
    assert (summary["parameters"], summary["rounds"]) == (28938, 2)
    assert "evaluation_accuracy_last" in summary
    dandelion(["ledger", "verify", str(tmp_path / "digits")], tmp_path)


def test_the_network_of_the_example_has_28938_parameters(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(EXAMPLE)])
    assert load_problem("digits:problem").problem.metrics.keys() == {"accuracy"}
    oracle = Oracle.of(configure({"app": "digits:problem"}))
    assert oracle.replica.model.layout.parameters == 28938
