"""``kill -9`` at any moment of a run, again and again, costs time and nothing else."""

import csv
import json
import os
import random
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from server.ledger.ledger import Ledger

ROOT = Path(__file__).resolve().parents[3]
KILLS, ROUNDS = 20, 150
SETTINGS = {
    "dataset": "topics",
    "max-samples": 12,
    "partitioner": "iid",
    "block-size": 16,
    "eval-blocks": 8,
    "num-clients": 3,
    "queries": 4,
    "momentum": 0.9,
    "learning-rate": 1e-3,
    "num-rounds": ROUNDS,
    "snapshot-interval": 7,
    "eval-interval": 5,
    "save-model": "false",
}


def start(folder, log):
    """Begin the run of a folder, or go on with it."""
    command = [sys.executable, "-m", "dandelion", "run"]
    if (folder / "ledger.sqlite").exists():
        command += ["--resume", str(folder)]
    else:
        pairs = {**SETTINGS, "output-dir": folder.parent, "run-name": folder.name}
        command += [word for key, value in pairs.items() for word in ("--set", f"{key}={value}")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder.parent, env=environment)


def rounds_of(folder):
    """How many rounds the log has, read as anyone may read it."""
    file = folder / "metrics.csv"
    return max(0, file.read_text().count("\n") - 1) if file.exists() else 0


def kill_somewhere(process, folder, chance):
    """Kill the process some rounds further on, or before it does any; False where it is done."""
    target = rounds_of(folder) + chance.choice([0, 1, 2, 5, 8, 12])
    while rounds_of(folder) < target and process.poll() is None:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    if process.poll() is not None:
        return False
    process.kill()
    process.wait()
    return True


def run_to_the_end(folder, log, chance=None):
    """Run, killed by ``chance`` up to KILLS times; return how often it was."""
    kills = 0
    while True:
        with start(folder, log) as process:
            if chance and kills < KILLS and kill_somewhere(process, folder, chance):
                kills += 1
                continue
            assert process.wait() == 0, Path(log.name).read_text()[-3000:]
            return kills


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_with_the_same_bits(tmp_path):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    with (tmp_path / "log").open("w+") as log:
        run_to_the_end(tmp_path / "whole", log)
        assert run_to_the_end(tmp_path / "killed", log, random.Random(seed)) > KILLS / 2
    whole, killed = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "killed")
    )
    down = "payload_bytes_down_per_client_round"
    for key in set(whole) - {"seconds", down}:
        if "message_bytes" not in key:  # ids of messages begin anew with each process
            assert killed[key] == whole[key], key
    assert whole[down] <= killed[down] < 40 * ROUNDS  # resumed sites were sent what they lacked
    with (tmp_path / "killed" / "metrics.csv").open() as file:
        assert [int(row["round"]) for row in csv.DictReader(file)] == [*range(1, ROUNDS + 1)]
    with closing(Ledger.open(tmp_path / "killed" / "ledger.sqlite")) as ledger:
        assert ledger.last_round == ROUNDS
        rounds = [row.round for row in ledger.snapshots()]
        assert rounds == [*range(7, ROUNDS + 1, 7)]
    files = {path.name for path in (tmp_path / "killed").rglob("*") if path.is_file()}
    assert not {name for name in files if name.startswith(".")}, "drafts were left behind"
