"""Trackers get every round once, whatever is resumed or rewound, and never end a run."""

import json
import logging
import re
import struct
import sys
from contextlib import closing
from pathlib import Path

import pytest
from federation import config

from dandelion.engines.local import run_local
from server.ledger.ledger import Ledger
from server.ledger.reader import LedgerReader
from server.ledger.records import Metrics
from server.ledger.run_folder import LEDGER, read_config
from server.tracking.points import LedgerPoints
from server.tracking.session import make_trackers, track
from server.tracking.tracker import TRACKERS
from server.tracking.weights_and_biases import is_online
from shared.base.errors import ConfigError, UnknownNameError
from shared.protocol.entry import Entry

BLOCK = 1 << 15


class Notebook:
    """A tracker as a user registers one: it remembers what it was given, by run."""

    memory = {}  # noqa: RUF012
    fails_at = None

    def start(self, run):
        self.points = self.memory.setdefault(run.id, [])
        self.settings = run.settings
        return self.points[-1].round if self.points else -1

    def log(self, point):
        if point.round == self.fails_at:
            raise OSError("no space left")
        self.points.append(point)

    def finish(self):
        self.memory["finished"] = self.memory.get("finished", 0) + 1


@pytest.fixture
def notebook(monkeypatch):
    monkeypatch.setattr(Notebook, "memory", {})
    TRACKERS.names()
    monkeypatch.setitem(TRACKERS._known, "notebook", Notebook)
    return Notebook


def wandb_records(file):
    """The records of wandb's file: LevelDB's log format after seven bytes, blocks of 32 KiB."""
    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def run_id(folder):
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        return ledger.header("run").hex()


def test_a_tracker_gets_every_round_once_also_when_the_run_is_resumed(notebook, tmp_path):
    own = {"trackers": " notebook ,tensorboard", "eval_interval": 1}
    folder = run_local(config(tmp_path, num_rounds=2, **own))
    run_local(config(tmp_path, num_rounds=4, resume=str(folder), **own))
    points = notebook.memory[run_id(folder)]
    assert [point.round for point in points] == [0, 1, 2, 3, 4]
    assert notebook.memory["finished"] == 2
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        metrics, evaluations = ledger.metrics(), ledger.evaluations()
    assert [p.values["held out/loss"] for p in points] == [e.loss for e in evaluations]
    assert [p.values["round/loss"] for p in points[1:]] == [m.loss for m in metrics]
    assert points[3].values["round/bytes up"] == metrics[2].bytes_up
    assert set(points[0].values) == {"held out/loss"}
    (file,) = (folder / "tensorboard").iterdir()  # that of the first part was replaced
    assert file.read_bytes().count(b"held out/loss") == 5


def test_a_rewind_is_a_round_of_its_own_and_says_so(tmp_path):
    folder = run_local(config(tmp_path))
    with closing(Ledger.open(folder / LEDGER)) as ledger:
        metrics = Metrics(4, "2026-01-01T00:00:00+00:00", None, 0.0, 0.1, 0, 0, 0, 0, 1.0)
        ledger.commit(Entry(4, 0.3, (), back_to=1), [], [], metrics, reason="it diverged")
        *_, last = LedgerPoints(ledger, read_config(ledger)).read_new()
    assert last.round == 4
    assert last.values["round/back to"] == 1
    assert "round/loss" not in last.values


@pytest.mark.parametrize("round_", [0, 2])
def test_a_tracker_that_fails_is_a_warning_and_the_run_goes_on(
    notebook, tmp_path, caplog, monkeypatch, round_
):
    monkeypatch.setattr(notebook, "fails_at", round_)
    with caplog.at_level(logging.WARNING, "dandelion"):
        folder = run_local(config(tmp_path, trackers="notebook,tensorboard"))
    assert json.loads((folder / "summary.json").read_text())["rounds"] == 3
    said = [r.getMessage() for r in caplog.records if "tracker" in r.getMessage()]
    assert said == ["tracker notebook failed and gets no more rounds: OSError: no space left"]
    assert [p.round for p in notebook.memory[run_id(folder)]] == list(range(round_))
    assert "finished" not in notebook.memory


def test_a_tracker_gets_no_folder_of_this_machine(notebook, tmp_path, monkeypatch):
    tracker = notebook()
    monkeypatch.setitem(TRACKERS._known, "notebook", lambda: tracker)
    run_local(config(tmp_path, num_rounds=1, trackers="notebook"))
    assert tracker.settings["queries"] == 2
    assert not [v for v in tracker.settings.values() if str(tmp_path) in str(v)]


def test_a_tracker_learns_the_name_of_a_folder_and_not_where_it_lies(notebook, tmp_path):
    folder = run_local(config(tmp_path, num_rounds=1))
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        own = read_config(ledger).replace(dataset=str(tmp_path / "notes"), init_from="/srv/start")
        tracker = notebook()
        with track({"notebook": tracker}, folder, ledger, own) as hand_on:
            hand_on()
    assert tracker.settings["dataset"] == "notes"
    assert tracker.settings["init-from"] == "start"
    assert [point.round for point in tracker.points] == [0, 1]


def test_what_no_tracker_is_called_or_is_not_installed_is_refused_before_a_run(
    tmp_path, monkeypatch
):
    with pytest.raises(
        UnknownNameError, match="unknown tracker 'wb'; known: mlflow, tensorboard, wandb"
    ):
        run_local(config(tmp_path, trackers="wb"))
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ConfigError, match=rf"pip install 'dandelion\[{name}\]'"):
            run_local(config(tmp_path, trackers=name))
    assert not list(tmp_path.iterdir())
    assert make_trackers(config(tmp_path)) == {}


def test_an_evaluation_that_comes_after_its_round_was_read_is_read_by_itself(tmp_path):
    folder = run_local(config(tmp_path))
    with closing(Ledger.open(folder / LEDGER)) as ledger:
        points = LedgerPoints(ledger, read_config(ledger))
        assert [point.round for point in points.read_new()] == [0, 1, 2, 3]
        assert points.read_new() == []
    with closing(Ledger.open(folder / LEDGER)) as ledger:
        points = LedgerPoints(ledger, read_config(ledger), after=1)
        assert [point.round for point in points.read_new()] == [2, 3]


@pytest.mark.slow
def test_mlflow_has_the_run_and_goes_on_with_it(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    own = {"trackers": "mlflow", "eval_interval": 1}
    folder = run_local(config(tmp_path, num_rounds=1, **own))
    run_local(config(tmp_path, num_rounds=2, resume=str(folder), **own))
    client = mlflow.MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "dandelion"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == folder.name
    assert run.info.status == "FINISHED"
    assert run.data.tags["dandelion.run"] == run_id(folder)
    assert run.data.params["queries"] == "2"
    history = client.get_metric_history(run.info.run_id, "held out/loss")
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        assert [(m.step, m.value) for m in history] == ledger.evaluations()


@pytest.mark.slow
def test_wandb_writes_offline_and_keeps_the_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    own = {"trackers": "wandb", "eval_interval": 1}
    folder = run_local(config(tmp_path, num_rounds=1, **own))
    run_local(config(tmp_path, num_rounds=2, resume=str(folder), **own))
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {file.name for file in files} == {f"run-{run_id(folder)}.wandb"}
    records = [Record.FromString(each) for file in files for each in wandb_records(file)]
    history = [r.history for r in records if r.WhichOneof("record_type") == "history"]
    steps = sorted(h.step.num for h in history)
    assert steps == [0, 1, 2]


def test_wandb_stays_offline_until_a_user_logs_in(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not is_online()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert is_online()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not is_online()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert is_online()  # the user's own choice is left to wandb


def test_the_tracker_of_the_page_tracking_md_works(tmp_path, monkeypatch):
    page = Path(__file__).parents[3] / "docs" / "how-to" / "tracking.md"
    monkeypatch.setattr(TRACKERS, "_known", dict(TRACKERS._known))
    exec(re.search(r"```python\n(.*?)```", page.read_text(), re.S)[1], {})
    folder = run_local(config(tmp_path, num_rounds=2, trackers="lines"))
    lines = (folder / "lines.txt").read_text().splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["0", "1", "2"]
