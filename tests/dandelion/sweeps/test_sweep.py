"""A sweep runs every cell at a slot of its own, outlives cells that fail, and can be cut off."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATIENCE_S, until
from small_config import DATA
from typer.testing import CliRunner

from dandelion.cli import sweep as sweep_cli
from dandelion.cli.app import app
from dandelion.settings.gather import read_pairs
from dandelion.sweeps.cells import CellFiles
from dandelion.sweeps.grid import Cell, axes_of, cells_of, name_of
from dandelion.sweeps.plan import SweepPlan, base_of, check_plan
from dandelion.sweeps.runner import ListedCells, Runner, make_slots
from dandelion.sweeps.search import SearchedCells, ranges_of
from server.ledger.run_folder import LEDGER
from shared.base.errors import ConfigError
from shared.config.schema import to_toml

ROOT = Path(__file__).resolve().parents[3]
SMALL = {
    **DATA,
    "num-clients": 2,
    "zo-batch-size": 2,
    "num-rounds": 4,
    "eval-interval": 2,
}


def words(folder, *options, **changes):
    pairs = {**SMALL, **{k.replace("_", "-"): v for k, v in changes.items()}}
    pairs["output-dir"] = folder
    return ["sweep", *options, *(w for k, v in pairs.items() for w in ("--set", f"{k}={v}"))]


def rows_of(folder):
    with (folder / "sweep.csv").open() as file:
        return {row["cell"]: row for row in csv.DictReader(file)}


def test_a_grid_is_every_combination_with_values_of_their_types():
    axes = axes_of(["mode=zo,instruct", "queries=1,8,64", "learning-rate=1e-3,3e-3"])
    assert axes["queries"] == [1, 8, 64]
    cells = cells_of(axes)
    assert len({cell.name for cell in cells}) == len(cells) == 12
    assert cells[1].name == "mode=zo,queries=1,learning-rate=0.003"
    assert cells[-1].settings == {"mode": "instruct", "queries": 64, "learning-rate": 3e-3}
    assert (
        name_of({"model": "owner/model", "save-model": True}) == "model=owner-model,save-model=true"
    )


@pytest.mark.parametrize(
    "grid",
    [
        [f"dataset=/srv/{'long/' * 30}notes", "queries=1,2"],
        ["learning-rate=0.010000001,0.010000002"],
        ["model=owner/model,owner:model"],
    ],
)
def test_cells_whose_names_would_be_the_same_have_each_their_own(grid):
    cells = cells_of(axes_of(grid))
    assert len({cell.name for cell in cells}) == 2
    assert all(len(cell.name) < 140 and "/" not in cell.name for cell in cells)
    assert cells == cells_of(axes_of(grid))  # as a sweep that is resumed finds them


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("queries", "key=value,value,… expected"),
        ("queris=1", "unknown setting 'queris'; did you mean queries"),
        ("queries=1,1", "each value once"),
        ("learning-rate=1e-3,0.001", "each value once"),
        ("queries=1,x", "int expected, got 'x'"),
        ("run-name=a,b", "run-name names a run, and each cell has its own"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        axes_of([text])


def test_a_cell_has_what_its_task_or_model_brings_and_keeps_its_own():
    cell = cells_of(axes_of(["learning-rate=0.5"]))[0]
    config = cell.config({"preset": "rotten-tomatoes", "queries": 3})
    assert (config.data.task, config.data.dataset, config.model.name) == (
        "classification",
        "rotten-tomatoes",
        "minilm",
    )
    assert (config.optimizer.learning_rate, config.zo.queries, config.data.label_words) == (
        0.5,
        3,
        "rotten, fresh",
    )
    axis = cells_of(axes_of(["model=smollm2-135m"]))[0].config({})
    assert axis.data.dataset == "shakespeare"
    again = Cell("again", {}).config(config.to_run_config())  # as its process reads it
    assert again.differences(config) == []


def test_what_only_some_cells_can_use_is_no_reason_to_refuse_the_sweep(tmp_path):
    options = ["--grid", "optimizer=adam,sgd", "--set", "beta1=0.95"]
    plan = SweepPlan(options[1:2], [], 1, base_of(None, read_pairs(options[3:])))
    check_plan(plan)
    with pytest.raises(ConfigError, match="has no effect with optimizer 'sgd'"):
        check_plan(SweepPlan(["queries=1,2"], [], 1, plan.base))


def test_a_private_run_is_followed_by_its_evaluations_alone(tmp_path):
    files = CellFiles(tmp_path, "cell")
    files.run.mkdir(parents=True)
    rows = "round,loss,evaluation loss\n1,,\n2,,4.5\n3,,\n"
    (files.run / "metrics.csv").write_text(rows)
    assert files.progress() == (3, None, [(2, 4.5)])
    (files.run / "metrics.csv").write_text(rows + "4,5.25,4.25\n")
    assert files.progress() == (4, 5.25, [(2, 4.5), (4, 4.25)])


def test_places_share_cores_and_gpus_evenly():
    slots = make_slots(2, ["0", "1"], [0, 1, 2, 3])
    assert [slot.cores for slot in slots] == [(0, 1), (2, 3)]
    assert [slot.settings() for slot in slots] == [{"threads": 2, "device": "cuda"}] * 2
    assert slots[1].environment()["CUDA_VISIBLE_DEVICES"] == "1"
    assert slots[0].environment()["OMP_NUM_THREADS"] == "2"
    assert [slot.cores for slot in make_slots(3, [], [5, 7])] == [(5,), (7,), (5,)]
    assert "device" not in make_slots(1)[0].settings()
    with pytest.raises(ConfigError, match="--parallel"):
        make_slots(0)


def test_what_is_sought_is_read_and_refused_where_it_makes_no_sense():
    (rate, queries) = ranges_of(["learning-rate=1e-4..1e-1:log", "queries=1..64"])
    assert (rate.low, rate.high, rate.log) == (1e-4, 1e-1, True)
    assert type(queries.distribution()).__name__ == "IntDistribution"
    for text, message in (
        ("learning-rate=1e-3", r"key=low\.\.high"),
        ("mode=a..b", "is not a number"),
        ("eps=0..1:log", "above 0 for log"),
        ("eps=2..1", "rising ends"),
    ):
        with pytest.raises(ConfigError, match=message):
            ranges_of([text])


class Pretence:
    """Stands for processes: what each cell's would leave behind, at once."""

    def __init__(self, monkeypatch, leave):
        self.commands = []

        def start(command, **keywords):
            self.commands.append((command, keywords))
            folder = Path(command[-1])
            name = folder.name if "--resume" in command else folder.stem
            status = leave(name)
            keywords["stdout"].write(f"LedgerError: {name} broke\n".encode() if status else b"")
            return FakeProcess(status)

        monkeypatch.setattr("dandelion.sweeps.runner.subprocess.Popen", start)
        monkeypatch.setattr("dandelion.sweeps.runner.os.sched_setaffinity", lambda *_: None)
        monkeypatch.setattr("dandelion.sweeps.runner.LOOK_S", 0.0)


class FakeProcess:
    pid = 0

    def __init__(self, status):
        self.status = status

    def poll(self):
        return self.status


def test_finished_cells_are_left_failed_ones_named_and_the_others_go_on(tmp_path, monkeypatch):
    def leave(name):
        if name == "queries=2":
            return 2
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "summary.json").write_text("{}")
        return 0

    cells, lines = cells_of({"queries": [1, 2, 4, 8]}), []
    (tmp_path / "queries=4").mkdir()
    (tmp_path / "queries=4" / "summary.json").write_text("{}")
    (tmp_path / "queries=8").mkdir()
    (tmp_path / "queries=8" / LEDGER).write_text("")
    pretence = Pretence(monkeypatch, leave)
    runner = Runner(tmp_path, {}, make_slots(2), lambda running, line: lines.append(line))
    runner.run(ListedCells(cells))
    assert [CellFiles(tmp_path, c.name).state() for c in cells] == [
        "done",
        "failed",
        "done",
        "done",
    ]
    assert CellFiles(tmp_path, "queries=2").reason() == "LedgerError: queries=2 broke"
    assert "queries=4: done already" in lines
    ways = ["--resume" if "--resume" in command else "new" for command, _ in pretence.commands]
    assert ways == ["new", "new", "--resume"]
    runner.run(ListedCells(cells))  # again: only what failed is tried again
    assert len(pretence.commands) == 4


def test_a_combination_that_cannot_work_fails_alone(tmp_path, monkeypatch):
    def leave(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text("{}")
        return 0

    Pretence(monkeypatch, leave)
    cells = cells_of({"mode": ["zo", "fedavg"], "query-data": ["fresh"]})
    Runner(tmp_path, {}, make_slots(1), lambda *_: None).run(ListedCells(cells))
    assert [CellFiles(tmp_path, c.name).state() for c in cells] == ["done", "failed"]
    assert "query-data 'fresh' with mode 'fedavg'" in CellFiles(tmp_path, cells[1].name).reason()


def train(folder, name, rate):
    """Leave what a run would: evaluations that are better, the nearer its rate is to 1."""
    files = CellFiles(folder, name)
    files.run.mkdir(parents=True)
    loss = 2.0 + (rate - 1.0) ** 2
    lines = ["round,loss,evaluation loss", f"1,5,{loss + 1}", f"2,5,{loss}"]
    (files.run / "metrics.csv").write_text("\n".join(lines) + "\n")
    (files.run / "summary.json").write_text("{}")
    files.log.parent.mkdir(exist_ok=True)
    files.config.write_text(to_toml({"learning-rate": rate}))


def search(folder, trials, run_trial):
    """A search whose trials ``run_trial`` trains; return the cells that it proposed."""
    cells, ranges = cells_of({"mode": ["zo"]}), ranges_of(["learning-rate=0.01..100:log"])
    source = SearchedCells(folder, cells, ranges, trials, seed=3)
    while (cell := source.next()) is not None:
        if CellFiles(folder, cell.name).state() == "new":
            run_trial(folder, cell.name, cell.settings["learning-rate"])
        source.record_end(cell)
    return source.begun


def test_a_search_comes_near_the_best_and_goes_on_from_its_files(tmp_path):
    pytest.importorskip("optuna")
    whole = search(tmp_path / "whole", 24, train)
    rates = [cell.settings["learning-rate"] for cell in whole]
    assert min(abs(rate - 1.0) for rate in rates) < 0.3
    assert whole[0].name == "mode=zo,trial=001"
    search(tmp_path / "cut", 9, train)
    new = []
    again = search(tmp_path / "cut", 24, lambda *a: (new.append(a), train(*a)))
    assert len(new) == 15
    assert [c.settings for c in again[:9]] == [c.settings for c in whole[:9]]


def test_a_trial_far_above_the_others_is_pruned(tmp_path):
    pytest.importorskip("optuna")
    cells, ranges = cells_of({"mode": ["zo"]}), ranges_of(["learning-rate=0.9..1.1"])
    source = SearchedCells(tmp_path, cells, ranges, 8, seed=1)
    for _ in range(6):
        cell = source.next()
        train(tmp_path, cell.name, cell.settings["learning-rate"])
        for _ in range(2):
            source.find_prune_reason(cell)
        source.record_end(cell)
    bad = source.next()
    assert source.find_prune_reason(bad) == ""
    train(tmp_path, bad.name, 9.0)
    assert "above the others' median" in source.find_prune_reason(bad)
    CellFiles(tmp_path, bad.name).mark("pruned", "too high")
    source.record_end(bad)
    assert CellFiles(tmp_path, bad.name).state() == "pruned"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--grid key=value"),
        (["--grid", "queries=1", "--search", "queries=1..4"], "both in --grid and in --search"),
        (
            ["--resume", "nowhere", "--grid", "queries=1"],
            "--resume continues a sweep as it was begun",
        ),
        (["--resume", "nowhere"], "no sweep to resume"),
        (["--resume", "nowhere", "--trials", "5"], "--resume continues a sweep as it was begun"),
        (["--grid", "queries=1", "--trials", "5"], "--trials 5 without --search"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, ["sweep", *options], catch_exceptions=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_sweep_trains_a_grid_and_tells_what_came_of_it(tmp_path):
    options = ["--grid", "mode=zo,fo", "--grid", "queries=1,4", "--grid", "scope=full,nonsense"]
    done = CliRunner().invoke(app, words(tmp_path, "--name", "s", "--parallel", "2", *options))
    folder = tmp_path / "s"
    assert done.exit_code == 1, done.output  # half of the cells cannot work
    rows = rows_of(folder)
    states = {name: row["state"] for name, row in rows.items()}
    assert sum(state == "done" for state in states.values()) == 4
    assert all(("full" in name) == (state == "done") for name, state in states.items())
    assert "unknown scope 'nonsense'" in rows["mode=zo,queries=1,scope=nonsense"]["error"]
    best = min(float(row["final loss"]) for row in rows.values() if row["final loss"])
    text = (folder / "summary.txt").read_text()
    assert f"best: held-out loss {best:.4f}" in text
    assert text.count("failed: ") == 4
    drawn = {path.name for path in folder.glob("*.png")}
    assert drawn == {
        "loss-by-mode.png", "loss-by-queries.png", "loss-by-scope.png",
        "final-loss-by-queries.png", "gradient-norm.png", "fo-against-zo.png",
    }  # fmt: skip
    digests = {name: row["digest"] for name, row in rows.items()}
    again = CliRunner().invoke(app, ["sweep", "--resume", str(folder)])
    assert again.exit_code == 1
    assert again.output.count("done already") == 4
    assert {name: row["digest"] for name, row in rows_of(folder).items()} == digests
    assert json.loads((folder / "sweep.json").read_text())["base"]["num-rounds"] == 4


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_goes_on_with_the_same_bits(tmp_path):
    options = ["--grid", "queries=2,4", "--parallel", "2"]
    whole = CliRunner().invoke(app, words(tmp_path, "--name", "whole", *options, num_rounds=250))
    assert whole.exit_code == 0, whole.output
    command = words(tmp_path, "--name", "cut", *options, num_rounds=250)
    process = subprocess.Popen(
        # what runs in a shell's background ignores ^C, and so would its children
        ["env", "--default-signal=INT", sys.executable, "-m", "dandelion", *map(str, command)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    cell = CellFiles(tmp_path / "cut", "queries=4")
    until(lambda: cell.progress()[0] >= 5 or process.poll() is not None, "round 5", each_s=0.05)
    process.send_signal(signal.SIGINT)
    lines = process.communicate(timeout=PATIENCE_S)[0].decode()
    assert process.returncode == sweep_cli.CANCELLED
    assert "continue with: dandelion sweep --resume" in lines
    assert cell.state() == "interrupted"
    again = CliRunner().invoke(app, ["sweep", "--resume", str(tmp_path / "cut"), "--parallel", "2"])
    assert again.exit_code == 0, again.output
    for key in ("digest", "final loss", "forwards"):
        assert [row[key] for row in rows_of(tmp_path / "cut").values()] == [
            row[key] for row in rows_of(tmp_path / "whole").values()
        ]


@pytest.mark.slow
def test_a_search_trains_and_names_the_best(tmp_path):
    pytest.importorskip("optuna")
    options = ["--search", "learning-rate=1e-3..1:log", "--trials", "4", "--grid", "mode=zo"]
    done = CliRunner().invoke(app, words(tmp_path, "--name", "s", "--parallel", "2", *options))
    assert done.exit_code == 0, done.output
    rows = rows_of(tmp_path / "s")
    assert len(rows) == 4
    assert len({row["learning-rate"] for row in rows.values()}) == 4
    assert "best: held-out loss" in done.output
