"""``kill -9`` at any moment of a run, again and again, costs time and nothing else."""

import csv
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
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


FORKS = """
import json, os, sys
import dandelion.cli.app, dandelion.engines.local, server.run, shared.models.gpt2
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.argv = ["dandelion", *json.loads(line)]
        dandelion.cli.app.entry()
    os.write({answers}, f"{{child}}\\n".encode())
    os.write({answers}, f"{{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}}\\n".encode())
"""


class Commands:
    """Runs ``dandelion`` in processes, one at a time, whose imports were made once."""

    def __init__(self, process, answers):
        self.process, self.answers = process, answers
        self.child, self.code = 0, None

    def start(self, words):
        """Begin a command."""
        self.process.stdin.write(json.dumps([*map(str, words)]) + "\n")
        self.process.stdin.flush()
        self.child, self.code = int(self.answers.readline()), None

    def has_ended(self):
        return self.code is not None or bool(select.select([self.answers], [], [], 0)[0])

    def status(self):
        """Wait for its end; a negative one is the number of the signal that ended it."""
        if self.code is None:
            self.code = int(self.answers.readline())
        return self.code

    def kill(self):
        """``kill -9``; whether that is what ended it."""
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(self.child, signal.SIGKILL)
        return self.status() == -signal.SIGKILL


@contextmanager
def commands_in(folder, log):
    """A process with everything imported, which forks for each command."""
    answers, writes = os.pipe()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    code = [sys.executable, "-c", FORKS.format(answers=writes)]
    with (
        os.fdopen(answers, "rb", buffering=0) as lines,
        subprocess.Popen(
            code, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, cwd=folder,
            env=environment, pass_fds=[writes],
        ) as process,
    ):  # fmt: skip
        os.close(writes)
        yield Commands(process, lines)
        process.stdin.close()


def words_of(folder):
    """The command that begins the run of a folder, or goes on with it."""
    if (folder / "ledger.sqlite").exists():
        return ["run", "--resume", folder]
    pairs = {**SETTINGS, "output-dir": folder.parent, "run-name": folder.name}
    return ["run", *(word for key, value in pairs.items() for word in ("--set", f"{key}={value}"))]


def rounds_of(folder):
    """How many rounds the log has, read as anyone may read it."""
    file = folder / "metrics.csv"
    return max(0, file.read_text().count("\n") - 1) if file.exists() else 0


def kill_somewhere(commands, folder, chance):
    """Kill the command some rounds further on, or before it does any; False if it is done."""
    target = rounds_of(folder) + chance.choice([0, 1, 2, 5, 8, 12])
    while rounds_of(folder) < target and not commands.has_ended():
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    return not commands.has_ended() and commands.kill()


def run_to_the_end(commands, folder, log, chance=None):
    """Run, killed by ``chance`` up to KILLS times; return how often it was."""
    kills = 0
    while True:
        commands.start(words_of(folder))
        if chance and kills < KILLS and kill_somewhere(commands, folder, chance):
            kills += 1
            continue
        assert commands.status() == 0, Path(log.name).read_text()[-3000:]
        return kills


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_with_the_same_bits(tmp_path):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    with (tmp_path / "log").open("w+") as log, commands_in(tmp_path, log) as commands:
        run_to_the_end(commands, tmp_path / "whole", log)
        chance = random.Random(seed)
        assert run_to_the_end(commands, tmp_path / "killed", log, chance) > KILLS / 2
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
