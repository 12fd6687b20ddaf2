"""Flower's own simulation, started so that it can only run this code and tells the truth."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from server.reporting.status_line import PREFIX
from shared.base.errors import ConfigError, DandelionError
from shared.config.schema import Config, to_toml

APP = Path(__file__).resolve().parents[2]  # pyproject.toml, server/, client/, shared/
CONNECTION = "simulation"
START_TIMEOUT_S = 90.0
POLL_S = 3.0  # asking Flower for its status costs a second of a core


class EngineError(DandelionError):
    """Flower did not start, or its run failed; says where its log is."""


def check_unmerged(config: Config, where: str) -> None:
    """Refuse what only the local engine does.

    Raises:
        ConfigError: ``merge-clients`` is set.
    """
    if config.merge_clients:
        raise ConfigError(
            f"merge-clients with {where}: sites of one process alone share forward passes; use the "
            "local engine"
        )


def run_flower(config: Config, console: Console) -> Path:
    """Train on Flower's simulation engine; return the run folder.

    Raises:
        EngineError: the run did not complete.
    """
    from server.ledger.run_folder import (
        run_folder,  # torch takes a second, and ``--help`` needs none of it
    )

    if not (APP / "pyproject.toml").exists():
        raise EngineError(f"{APP}: no pyproject.toml; --engine flower runs from a checkout")
    check_unmerged(config, "--engine flower")
    if config.error_feedback:
        raise ConfigError(
            "error-feedback with --engine flower: Ray moves sites between processes, and what a "
            "site owes stays behind; use the local engine, or a deployment"
        )
    folder = run_folder(config)
    settings = {**config.to_run_config(), "run-name": folder.name, "output-dir": str(folder.parent)}
    with tempfile.TemporaryDirectory(prefix="dandelion-") as home:
        # An empty folder: Ray puts the daemon's working folder before the app's own code.
        environment = flower_environment(Path(home))
        file = Path(home, "run.toml")
        file.write_text(to_toml(settings))
        with superlink(Path(home), environment) as log:
            run_id = _start(file, config, environment)
            console.print(f"Flower run {run_id}; log {log}", soft_wrap=True, highlight=False)
            status = _wait(run_id, environment, log, console)
        if status != "finished:completed":
            kept = folder / "flower.log"
            folder.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(log.read_bytes())
            raise EngineError(f"Flower run {run_id} ended as {status}; its log: {kept}")
    return folder


def flower_environment(home: Path) -> dict[str, str]:
    """Variables under which Flower installs nothing, calls nobody and writes to ``home``."""
    return {
        **os.environ,
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


@contextmanager
def superlink(home: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """A simulation SuperLink in a neutral folder, ended with everything that it started."""
    port, empty, log = free_port(), home / "empty", home / "superlink.log"
    empty.mkdir()
    (home / "flwr").mkdir()
    (home / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    command = [
        "flower-superlink",
        "--insecure",
        "--simulation",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--disable-runtime-dependency-installation",
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=empty,
            env=dict(environment),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _await_port(port, process, log)
        yield log
    finally:
        end_session(process)


def end_session(process: "subprocess.Popen[bytes]") -> None:
    """End a process that leads its own session, and its children; politely, then not."""
    import signal

    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(timeout=10)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait(timeout=10)


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_port(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise EngineError(f"the SuperLink did not start: {log.read_text(errors='replace')[-2000:]}")


def _start(file: Path, config: Config, environment: Mapping[str, str]) -> str:
    federation = f"num-supernodes={config.num_clients} client-resources-num-cpus={config.threads}"
    done = subprocess.run(
        [
            "flwr",
            "run",
            str(APP),
            CONNECTION,
            "--run-config",
            str(file),
            "--federation-config",
            federation,
            "--format",
            "json",
        ],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return str(json.loads(done.stdout)["run-id"])
    except (ValueError, KeyError) as error:
        raise EngineError(f"flwr run did not start: {done.stdout}{done.stderr}") from error


def _wait(run_id: str, environment: Mapping[str, str], log: Path, console: Console) -> str:
    shown = 0
    while True:
        time.sleep(POLL_S)
        lines = [line for line in log.read_text(errors="replace").splitlines() if PREFIX in line]
        for line in lines[shown:]:
            console.print(line.partition(PREFIX)[2], soft_wrap=True, highlight=False, markup=False)
        shown = len(lines)
        done = subprocess.run(
            ["flwr", "ls", CONNECTION, "--run-id", run_id, "--format", "json"],
            env=dict(environment),
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            status = str(json.loads(done.stdout)["runs"][0]["status"])
        except (ValueError, KeyError, IndexError) as error:
            raise EngineError(f"flwr ls failed: {done.stdout}{done.stderr}") from error
        if status.startswith("finished"):
            return status
