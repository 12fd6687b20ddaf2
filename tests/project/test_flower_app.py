"""The example of a stock Flower app: few lines differ, and both versions run in Flower."""

import difflib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT
from processes import PATIENCE_S

from dandelion.engines.flower_simulation import (
    CONNECTION,
    flower_environment,
    run_flwr,
    run_superlink,
)

FOLDER = ROOT / "examples" / "flower_app"
FILES = ["pyproject.toml", *(f"digits/{n}.py" for n in ("__init__", "task", "client_app",
                                                        "server_app"))]  # fmt: skip
MOST_LINES = 15


def lines(version, name):
    return (FOLDER / version / name).read_text().splitlines()


def changes(sign):
    """Lines that only one version has: + the one after, - the one before."""
    pairs = [(lines("before", name), lines("after", name)) for name in FILES]
    diff = [line for pair in pairs for line in difflib.unified_diff(*pair, n=0)]
    return [line for line in diff if line.startswith(sign) and line[:3] not in ("+++", "---")]


def test_the_versions_have_the_same_files():
    for version in ("before", "after"):
        root = FOLDER / version
        files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
        kept = [path for path in files if "__pycache__" not in path.parts]
        assert sorted(map(str, kept)) == sorted(FILES)


def test_few_lines_are_written_and_few_removed():
    assert 0 < len(changes("+")) <= MOST_LINES
    assert 0 < len(changes("-")) <= MOST_LINES
    readme = (FOLDER / "README.md").read_text()
    assert f"{len(changes('+'))} lines written, {len(changes('-'))} removed" in readme


def test_before_knows_nothing_of_dandelion():
    assert not [name for name in FILES if "dandelion" in "\n".join(lines("before", name))]


@pytest.mark.slow
def test_both_run_in_flowers_simulation():
    words = [sys.executable, "-W", "ignore", str(FOLDER / "measure.py"), "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    read = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    before, after = json.loads(read["before"]), json.loads(read["after"])
    assert list(before["accuracy"]) == list(after["accuracy"]) == ["0", "1", "2"]
    assert after["accuracy"]["0"] == before["accuracy"]["0"]  # the same initial model
    assert after["accuracy"]["2"] != after["accuracy"]["0"]
    assert after["up"] < before["up"] / 5


@pytest.mark.slow
@pytest.mark.parametrize("version", ["before", "after"])
def test_flwr_run_executes_it(version, tmp_path):
    environment = flower_environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
    with run_superlink(tmp_path, environment) as log:
        words = ["run", str(FOLDER / version), CONNECTION, "--run-config", "num-server-rounds=1"]
        federation = "num-supernodes=4 client-resources-num-cpus=1"
        started = run_flwr([*words, "--federation-config", federation], environment)
        status = wait(str(started["run-id"]), environment)
        text = Path(log).read_text(errors="replace")
    assert status == "finished:completed", text[-3000:]
    assert list(tmp_path.rglob("final_model.pt"))


def wait(run_id, environment):
    import time

    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        time.sleep(3)
        answer = run_flwr(["ls", CONNECTION, "--run-id", run_id], environment)
        status = str(answer["runs"][0]["status"])
        if status.startswith("finished"):
            return status
    return "did not end"
