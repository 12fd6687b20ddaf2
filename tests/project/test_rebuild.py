"""The page on the ledger's layout is complete: a program written from it rebuilds every round."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
import xxhash
from federation import config, federate, folder_of, resumed
from pages import ROOT

from docs.rebuild.__main__ import main, rebuild
from docs.rebuild.words import LayoutError
from docs.rebuild.xxh3 import xxh3_128

FOLDER = ROOT / "docs" / "rebuild"
WATCHED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module("rebuild", run_name="__main__")
finally:
    print(sorted({"torch", "shared", "server", "xxhash"} & sys.modules.keys()))
"""
KINDS = {
    "sgd": {"weight_decay": 0.01, "seed_schedule": "independent"},
    "sgd in bfloat16": {"dtype": "bfloat16", "eps": 0.01, "learning_rate": 0.05},
    "momentum": {"momentum": 0.9, "weight_decay": 0.01},
    "adam": {"optimizer": "adam", "beta1": 0.8, "weight_decay": 0.01, "learning_rate": 1e-3},
    "adam in bfloat16": {"optimizer": "adam", "dtype": "bfloat16", "eps": 0.01},
    "mudamw": {"optimizer": "mudamw", "cautious": True, "learning_rate": 1e-3},
    "lowrank": {"directions": "lowrank", "direction_rank": 3, "local_steps": 2},
    "hadamard": {"directions": "hadamard", "queries": 5, "seed_schedule": "independent"},
    "gradients": {"mode": "fo", "snapshot_interval": 0, "momentum": 0.5},
    "biases": {"scope": "bias", "directions": "lowrank"},
    "last block": {"scope": "last:1", "momentum": 0.9},
    "biases of the last block": {"scope": "last:1:bias", "optimizer": "adam"},
    "reduced": {"scope": "reduced", "dtype": "bfloat16", "eps": 0.01},
    "output matrix": {"scope": "head"},
    "pattern": {"scope": r"regex:h\.0\.attn"},
    "gradients in bfloat16": {"mode": "fo", "codec": "bfloat16", "snapshot_interval": 0},
    "gradients in int8": {"mode": "fo", "codec": "int8", "snapshot_interval": 0},
    "sparse gradients": {
        **{"mode": "calibrate", "bp_interval": 2, "codec": "topk", "topk_fraction": 0.03},
        **{"error_feedback": True, "scope": "last:1", "snapshot_interval": 0},
    },
    "private": {"privacy": "local", "privacy_clip": 1.0, "privacy_noise": 1.0},
    "median": {"aggregation": "median", "step": "auto"},
    "one round behind": {"staleness": 1},
    "models of the sites": {"mode": "fedavg", "snapshot_interval": 0},
    "both": {"mode": "instruct", "bp_interval": 2, "guidance": "reuse", "snapshot_interval": 0},
}


def ledger(chosen):
    """The ledger file of a run that has been trained."""
    federate(chosen)
    return folder_of(chosen) / "ledger.sqlite"


def compare(rows, rounds):
    """Every round was rebuilt, its digest was recorded, and the two are equal."""
    assert [row[0] for row in rows] == list(range(rounds + 1))
    assert [ours.hex() for _, ours, _ in rows] == [theirs.hex() for _, _, theirs in rows]


@pytest.fixture
def path_of(tmp_path):
    """A function that gives the ledger of a run with some settings."""
    return lambda **changes: ledger(config(tmp_path, **changes))


@pytest.mark.parametrize("kind", KINDS)
def test_every_round_is_rebuilt_to_the_bit(kind, path_of):
    compare(rebuild(path_of(**KINDS[kind])), 3)


def test_a_resumed_run_is_rebuilt(path_of, tmp_path):
    path = path_of(momentum=0.9, num_rounds=2)
    federate(resumed(config(tmp_path, momentum=0.9, num_rounds=4)))
    compare(rebuild(path), 4)


def test_a_run_that_went_back_is_rebuilt_the_undone_rounds_included(path_of):
    path = path_of(momentum=0.5, learning_rate=1e3, num_rounds=8, snapshot_interval=1)
    with closing(sqlite3.connect(path)) as file:
        undone = file.execute("SELECT sum(round - 1 - back_to) FROM rewinds").fetchone()[0]
    assert undone
    compare(rebuild(path), 8)


def test_the_program_needs_nothing_of_this_project(path_of, tmp_path):
    shutil.copytree(FOLDER, tmp_path / "rebuild")
    words = [sys.executable, "-c", WATCHED, "rebuild", str(path_of())]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["3 rounds rebuilt, 4 digests compared: all equal", "[]"]
    assert done.returncode == 0


def test_a_changed_number_is_noticed(path_of, capsys):
    path = path_of()
    with closing(sqlite3.connect(path)) as file:
        (payload,) = file.execute("SELECT payload FROM entries WHERE round = 2").fetchone()
        file.execute("UPDATE digests SET digest = zeroblob(16) WHERE round = 2")
        file.commit()
    assert main([str(path)]) == 1
    assert capsys.readouterr().out.startswith(f"round 2: {'00' * 16} is recorded, ")
    with closing(sqlite3.connect(path)) as file:
        broken = payload[:30] + bytes([payload[30] ^ 1]) + payload[31:]
        file.execute("UPDATE entries SET payload = ? WHERE round = 2", (broken,))
        file.commit()
    with pytest.raises(LayoutError, match="round 2: the checksum"):
        rebuild(path)


def test_what_the_page_does_not_cover_is_refused_by_name(path_of):
    with pytest.raises(LayoutError, match="one of rademacher, hadamard, lowrank expected"):
        rebuild(path_of(directions="gaussian"))


@pytest.mark.parametrize("size", [241, 1024, 1025, 1088, 5000, 65536])
def test_its_hash_is_xxh3(size):
    data = bytes(number * number % 251 for number in range(size))
    assert xxh3_128(data) == xxhash.xxh3_128(data).digest()
