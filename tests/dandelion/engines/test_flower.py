"""The same run on three engines: in this process, on Flower's simulation, and by ``flwr run .``.

These are the commands of docs/how-to/flower-simulation.md.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from machines import last_round
from processes import of, of_flower_home, until
from rich.console import Console
from small_tasks import kept_settings, task_settings

from dandelion.engines import flower_simulation
from dandelion.engines.flower_reports import (
    NO_NODE,
    PREFIX,
    RAY_LATE,
    TOKEN_LOST,
    TOO_SLOW,
    failure_text,
    has_ended,
    progress_lines,
)
from dandelion.engines.flower_simulation import (
    ROOT,
    STARTS,
    EngineError,
    app_folder,
    flower_environment,
    free_port,
    ray_folder,
    run_flower,
)
from dandelion.engines.local import run_local
from shared.config.schema import Config, to_toml

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
def test_a_mask_and_rates_that_follow_falls_are_those_of_the_local_engine(tmp_path):
    """Two things that a run chooses by itself, and once; were one another, the digest would be."""
    chosen = {"scope": "mask:0.1", "step": "auto", "estimator": "forward", "queries": 4}
    here = run_local(config(tmp_path, "here", **chosen))
    there = run_flower(config(tmp_path, "there", **chosen), Console(quiet=True))
    assert digest(there) == digest(here)


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


@pytest.mark.slow
def test_all_processes_end_with_a_run_that_is_killed(tmp_path):
    pairs = config(tmp_path, "killed", **{"num-rounds": 10_000}).to_run_config()
    (tmp_path / "run.toml").write_text(to_toml(pairs))
    # of a short name, so that Ray's sockets fit; what belongs to the run has it in its variables
    with tempfile.TemporaryDirectory(prefix="k-", ignore_cleanup_errors=True) as short:
        command = [sys.executable, "-m", "dandelion", "run", "--engine", "flower"]
        command += ["--config", str(tmp_path / "run.toml")]
        run = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": short, "RAY_TMPDIR": short},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: run.poll() is not None or last_round(tmp_path / "killed") > 0, "a round")
        assert run.poll() is None
        kinds = ("flower-superlink", "flower-superexec", "flwr-simulation", "raylet")
        assert [kind for kind in kinds if not of(Path(short), kind)] == []
        run.kill()
        run.wait()
        until(lambda: not of(Path(short)), "no process is left")


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["words", "last:1"])
def test_what_is_kept_of_a_text_is_the_same_in_processes_of_their_own(tmp_path, scope):
    """Features of texts that several sites hold, without a cache between the processes."""
    chosen = kept_settings(scope, tmp_path / "reviews")
    here = digest(run_local(config(tmp_path, "here", **chosen)))
    assert digest(run_flower(config(tmp_path, "there", **chosen), Console(quiet=True))) == here


@pytest.mark.slow
def test_answers_are_learned_and_judged_alike_in_flowers_simulation(tmp_path):
    """A chat model and a file of messages; the sites write answers too, and their scores travel."""
    pytest.importorskip("rouge_score", reason="the extra generation is not installed")
    chats = {**task_settings("generation", tmp_path), "site-eval-fraction": 0.3}
    here = run_local(config(tmp_path, "here", **chats))
    there = run_flower(config(tmp_path, "there", **chats), Console(quiet=True))
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (here, there))
    for name in ("digest", "evaluation_rouge-l_last", "sites_rouge-l_last", "sites_token-f1_last"):
        assert theirs[name] == ours[name], name
    assert theirs["refused_replies"] == 0


def test_rays_files_go_with_the_runs_own_if_a_socket_there_can_be_named(tmp_path):
    assert ray_folder("/tmp/dandelion-abcdefgh") == {"RAY_TMPDIR": "/tmp/dandelion-abcdefgh"}
    socket = "/ray/session_2026-11-28_17-54-15_703656_4194304/sockets/plasma_store"
    assert len(socket) + flower_simulation.RAY_ROOM <= 107
    assert ray_folder(str(tmp_path / ("long" * 9))) == {}


def test_a_machine_that_is_too_busy_for_flower_is_told_so_once():
    """The line is of Flower 1.41, whose ``flwr-simulation`` was made to begin 45 s late."""
    lost = "[/v1/runtime/push-task-output][ApiError:1008] Runtime task-token authentication failed."
    log = [f"{PREFIX}round 1", lost, "INFO other", lost, f"{PREFIX}round 2", lost]
    assert progress_lines("\n".join(log)) == ["round 1", TOO_SLOW, "round 2"]
    assert progress_lines(f"{log[0]}\n{log[2]}") == ["round 1"]


def test_the_end_of_a_runs_task_is_seen_in_the_log():
    """The line is of Flower 1.41; a run that fails has it too."""
    line = "INFO :      Finished task 92990214 of run 87937"
    assert has_ended(f"INFO : Started task 92990214 of run 87937\n{line}\n", "87937")
    assert not has_ended(line, "879")
    assert not has_ended("INFO : Started task 92990214 of run 87937", "87937")


def test_the_app_is_what_flower_needs_and_nothing_else_of_the_checkout(tmp_path):
    folder = app_folder(tmp_path)
    assert {path.name for path in folder.iterdir()} == {
        "client", "server", "shared", "dandelion", "pyproject.toml",
    }  # fmt: skip
    assert [path.name for path in (folder / "dandelion").iterdir()] == ["__init__.py"]
    assert (folder / "pyproject.toml").read_bytes() == (ROOT / "pyproject.toml").read_bytes()
    assert not [*folder.rglob("__pycache__")]


def test_a_failed_run_is_reported_with_its_error_and_a_slow_process(tmp_path):
    log, details = tmp_path / "flower.log", "Traceback:\n  raise x\nValueError: 3 expected, got 2\n"
    assert "ended as finished:failed: ValueError: 3 expected, got 2; its log:" in failure_text(
        "7", "finished:failed", details, log
    )
    log.write_text(f"ERROR {TOKEN_LOST}.\n")
    text = failure_text("7", "finished:failed", "No heartbeat received from the task", log)
    assert "No heartbeat received from the task" in text
    assert text.endswith(TOO_SLOW)
    log.write_text(f"Exception: {NO_NODE}. This could happen\n")
    assert failure_text("7", "finished:failed", "Simulation failed", log).endswith(RAY_LATE)


@pytest.mark.parametrize("has_ledger", [False, True])
def test_a_run_whose_ray_is_late_is_started_again(tmp_path, monkeypatch, has_ledger):
    """Ray 2.55 gives up if an agent of its own has not begun within 15 s (ray issue 65983)."""
    chosen, starts = config(tmp_path, "late"), []

    def fail(given, folder, console):
        starts.append(given.run.resume)
        if has_ledger:
            folder.mkdir(exist_ok=True)
            (folder / "ledger.sqlite").touch()
        return f"ended as finished:failed; {RAY_LATE}" if len(starts) < STARTS else ""

    monkeypatch.setattr(flower_simulation, "_train_once", fail)
    assert run_flower(chosen, Console(quiet=True)) == tmp_path / "late"
    assert starts == ["", *([str(tmp_path / "late") if has_ledger else ""] * (STARTS - 1))]


@pytest.mark.parametrize(("reason", "starts"), [(RAY_LATE, STARTS), ("ValueError: 3", 1)])
def test_other_failures_end_a_run_at_once_and_a_late_ray_in_the_end(
    tmp_path, monkeypatch, reason, starts
):
    answers = iter([f"ended as finished:failed; {reason}"] * starts)
    monkeypatch.setattr(flower_simulation, "_train_once", lambda *_: next(answers))
    with pytest.raises(EngineError, match=reason):
        run_flower(config(tmp_path, "fails"), Console(quiet=True))
    assert next(answers, None) is None
