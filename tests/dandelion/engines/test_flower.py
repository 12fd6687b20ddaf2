"""The same run on three engines: in this process, on Flower's simulation, and by ``flwr run .``.

These are the commands of docs/how-to/flower-simulation.md.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import small_models
from processes import of_flower_home
from rich.console import Console

from dandelion.engines.flower_simulation import ROOT, flower_environment, free_port, run_flower
from dandelion.engines.local import run_local
from shared.config.schema import Config

SETTINGS = {
    "num-rounds": 3,
    "num-clients": 3,
    "queries": 2,
    "max-samples": 60,
    "block-size": 16,
    "eval-blocks": 8,
    "snapshot-interval": 2,
}


def digest(folder: Path) -> str:
    return json.loads((folder / "summary.json").read_text())["digest"]


def config(tmp_path: Path, name: str, **more: object) -> Config:
    return Config.from_run_config(
        {**SETTINGS, "output-dir": str(tmp_path), "run-name": name, **more}
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return digest(run_local(config(tmp_path_factory.mktemp("local"), "local")))


@pytest.mark.slow
def test_flowers_simulation_gives_the_digest_of_the_local_engine(tmp_path, expected):
    assert digest(run_flower(config(tmp_path, "flower"), Console(quiet=True))) == expected


@pytest.mark.slow
def test_rates_that_follow_falls_are_those_of_the_local_engine(tmp_path):
    by_falls = {"step": "auto", "estimator": "forward", "queries": 4}
    here = digest(run_local(config(tmp_path, "here", **by_falls)))
    assert digest(run_flower(config(tmp_path, "there", **by_falls), Console(quiet=True))) == here


@pytest.mark.slow
def test_a_mask_is_chosen_once_and_is_that_of_the_local_engine(tmp_path):
    here = digest(run_local(config(tmp_path, "here", scope="mask:0.1")))
    there = run_flower(config(tmp_path, "there", scope="mask:0.1"), Console(quiet=True))
    assert digest(there) == here


@pytest.mark.slow
def test_flwr_run_in_the_checkout_gives_the_digest_of_the_local_engine(tmp_path, expected):
    environment = flower_environment(tmp_path / "home") | {
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port())
    }
    pairs = config(tmp_path, "run").to_run_config()
    settings = " ".join(f"{key}={json.dumps(value)}" for key, value in pairs.items())
    command = [
        Path(sys.executable).parent / "flwr",
        "run",
        ".",
        "--stream",
        "--run-config",
        settings,
    ]
    command += ["--federation-config", "num-supernodes=3 client-resources-num-cpus=1"]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (tmp_path / "run" / "summary.json").exists(), done.stdout + done.stderr
        assert digest(tmp_path / "run") == expected
    finally:
        for pid in of_flower_home(tmp_path / "home" / "flwr"):
            os.kill(pid, signal.SIGKILL)


def reviews(folder):
    """A folder with a table of texts of two classes, some of them at several sites."""
    folder.mkdir()
    lines = []
    for number in range(60):
        label = ("bad", "good")[number % 2]
        text = f"the film was {label}{' and the plot' * (number // 2 % 5)}"
        lines.append(json.dumps({"text": text, "label": label}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["words", "last:1"])
def test_what_is_kept_of_a_text_is_the_same_in_processes_of_their_own(tmp_path, scope):
    """Features of texts that several sites hold, without a cache between the processes."""
    chosen = {
        **{"task": "classification", "label-words": "bad, good", "scope": scope, "threads": 1},
        **{"model": small_models.causal(tmp_path / "model"), "dataset": reviews(tmp_path / "data")},
        **{"max-samples": 0, "keep-disk": 0, "partitioner": "iid", "step": "auto"},
    }
    here = digest(run_local(config(tmp_path, "here", **chosen)))
    assert digest(run_flower(config(tmp_path, "there", **chosen), Console(quiet=True))) == here
