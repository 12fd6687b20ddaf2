"""The tutorial about one's own model and the example of MNIST do what they say."""

import gzip
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from machines import Federation
from pages import ROOT
from processes import of_flower_home
from three_nodes import partition

from dandelion.engines.flower_simulation import flower_environment, free_port
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
    assert f"in {len(own)} lines of one's own" in (EXAMPLE / "README.md").read_text()


@pytest.mark.parametrize("name", ["digits.py", "mnist.py"])
def test_the_example_imports_what_a_stranger_has(name):
    """Of this project only ``dandelion``, the documented import."""
    tops = re.findall(r"^(?:from|import) (\w+)", (EXAMPLE / name).read_text(), re.M)
    assert set(tops) <= {"dandelion", "torch", "mnist", *sys.stdlib_module_names}


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """The four files of MNIST, made small: a blank picture for 0, a brighter one for each digit."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    monkeypatch.setenv("MNIST", str(folder))
    for part, count in (("train", 400), ("t10k", 100)):
        labels = np.arange(count, dtype=np.uint8) % 10
        pictures = np.repeat(labels * 25, 28 * 28)
        for name, sizes, values in (
            ("images-idx3", (count, 28, 28), pictures), ("labels-idx1", (count,), labels),
        ):  # fmt: skip
            header = bytes([0, 0, 8, len(sizes)]) + np.array(sizes, ">u4").tobytes()
            path = folder / f"{part}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(header + values.tobytes()))
    return folder


def test_the_reader_of_the_example_gives_pictures_and_digits(mnist, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(EXAMPLE)])
    reader = runpy.run_path(str(EXAMPLE / "mnist.py"))
    pictures, labels = reader["pictures_and_labels"]("t10k")
    assert (pictures.shape, labels.shape) == ((100, 1, 28, 28), (100,))
    assert labels[:11].tolist() == [*range(10), 0]
    assert pictures[7].unique().tolist() == [pytest.approx(7 * 25 / 255)]


@pytest.mark.slow
def test_the_example_trains_the_network_of_its_readme(mnist, tmp_path):
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


SMALL = {
    "app": "digits:problem", "partitioner": "iid", "num-clients": 3, "num-rounds": 3,
    "queries": 2, "zo-batch-size": 8, "eval-blocks": 50, "snapshot-interval": 0,
}  # fmt: skip


def pairs(settings):
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def digest(run):
    return json.loads((run / "summary.json").read_text())["digest"]


@pytest.fixture
def example(tmp_path):
    """A copy of the example, as a user has it."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "example"))


def flwr_run(app, home):
    """Run the folder as a Flower app, with the small settings."""
    table = "".join(f"{k} = {json.dumps(v)}\n" for k, v in (SMALL | {"run-name": "app"}).items())
    table += f"output-dir = {json.dumps(str(app / 'runs'))}\n"
    project = (app / "pyproject.toml").read_text().partition("[tool.flwr.app.config]\n")[0]
    (app / "pyproject.toml").write_text(f"{project}[tool.flwr.app.config]\n{table}")
    port = {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    command = [Path(sys.executable).parent / "flwr", "run", ".", "--stream"]
    command += ["--federation-config", "num-supernodes=3 client-resources-num-cpus=1"]
    try:
        done = subprocess.run(
            command, cwd=app, env=flower_environment(home) | port, capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip
        assert (app / "runs" / "app" / "summary.json").exists(), done.stdout + done.stderr
    finally:
        for pid in of_flower_home(home / "flwr"):
            os.kill(pid, signal.SIGKILL)


def separate_machines(app, folder):
    """Run it by a server and three sites over TLS; return the folder of the run."""
    federation = Federation(folder)
    try:
        federation.up()
        for number in range(3):
            federation.join(f"n{number}", *partition(number), "--app-dir", str(app))
        more = {"min-sites": 3, "min-replies": 3, "app-dir": str(app), "round-timeout": 300}
        run = federation.run("machines", {**SMALL, **more})
        assert run.wait(400) == 0, federation.output_of("machines")
    finally:
        federation.end()
    return federation.runs / "machines"


@pytest.mark.deployment
def test_the_example_has_one_digest_on_all_four_engines(mnist, example, tmp_path):
    dandelion(["run", "--name", "local", *pairs(SMALL)], example)
    dandelion(["run", "--name", "flower", "--engine", "flower", *pairs(SMALL)], example)
    flwr_run(example, tmp_path / "home")
    runs = [example / "runs" / name for name in ("flower", "app")]
    runs.append(separate_machines(example, tmp_path))
    local = digest(example / "runs" / "local")
    assert [digest(run) for run in runs] == [local] * 3
    for run in runs:
        dandelion(["ledger", "verify", str(run)], example)


@pytest.mark.deployment
def test_the_example_is_resumed_and_compared(mnist, example):
    dandelion(["run", "--name", "whole", *pairs(SMALL | {"num-rounds": 4})], example)
    dandelion(["run", "--name", "half", *pairs(SMALL | {"num-rounds": 2})], example)
    dandelion(["run", "--resume", "runs/half", "--set", "num-rounds=4"], example)
    assert digest(example / "runs" / "half") == digest(example / "runs" / "whole")
    words = ["compare", "--methods", "zo,fo", "--rates", "1", "--name", "both", *pairs(SMALL)]
    dandelion(words, example)
    rows = json.loads((example / "runs" / "both" / "comparison.json").read_text())["methods"]
    assert [row["name"] for row in rows] == ["zo", "fo"]
