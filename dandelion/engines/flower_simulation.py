"""The Flower engine: starts a simulation SuperLink for one run and waits for its status."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from dandelion.engines.flower_reports import RAY_LATE, failure_text, has_ended, progress_lines
from dandelion.engines.process_tree import end_tree, start_tree
from shared.base.errors import ConfigError, DandelionError
from shared.base.files import OWN_PACKAGES
from shared.config.schema import Config, to_toml

ROOT = Path(__file__).resolve().parents[2]  # of pyproject.toml, server/, client/, shared/
PROJECT = "pyproject.toml"
PUBLIC = Path("dandelion", "__init__.py")  # of an app too
INSTALLED_PROJECT = Path(__file__).with_name("flower_app.toml")  # the same file, in a wheel
CONNECTION = "simulation"
START_TIMEOUT_S = 300.0  # one that ends is noticed at once; a busy machine takes minutes
RAY_ROOM = 30  # bytes of a folder's path; a socket's has at most 107, and Ray adds up to 77
STARTS = 3  # of a run whose Ray is late: at most so many
LOOK_S = 1.0  # between looks at a log
POLL_S = 15.0  # between status queries while the log shows no end: one costs a second of a core


class EngineError(DandelionError):
    """Flower did not start, or its run failed; the message names its log."""


def check_unmerged(config: Config, engine: str) -> None:
    """Refuse a setting that only the local engine supports.

    Raises:
        ConfigError: ``merge-clients`` is set.
    """
    if config.federation.merge_clients:
        raise ConfigError(
            f"merge-clients with {engine}: only sites of one process share forward passes; use the "
            "local engine"
        )


def run_flower(config: Config, console: Console) -> Path:
    """Train on Flower's simulation engine; return the run folder.

    Raises:
        ConfigError: what is known to fail before anything starts, such as more sites than examples.
        EngineError: the run did not complete.
    """
    # torch takes a second, and ``--help`` needs none of it
    from server.ledger.run_folder import LEDGER, run_folder
    from server.run import check_shards
    from shared.training.corpus import Corpus
    from shared.training.server_choices import resolve_choices
    from shared.training.start import load_start

    check_unmerged(config, "--engine flower")
    if config.bp.error_feedback:
        raise ConfigError(
            "error-feedback with --engine flower: Ray moves sites between processes, and a site's "
            "residual stays behind; use the local engine or a deployment"
        )
    folder, config = run_folder(config), resolve_choices(config)
    check_shards(Corpus.of(config, load_start(config)))
    for left in reversed(range(STARTS)):
        if not (failure := _train_once(config, folder, console)):
            break
        if not left or RAY_LATE not in failure:
            raise EngineError(failure)
        console.print(f"{RAY_LATE}: the run is started again", soft_wrap=True, highlight=False)
        if (folder / LEDGER).exists():
            config = config.replace(resume=str(folder))
    return folder


def _train_once(config: Config, folder: Path, console: Console) -> str:
    """Train on a SuperLink of the run's own; return why the run failed, or nothing."""
    settings = {**config.to_run_config(), "run-name": folder.name, "output-dir": str(folder.parent)}
    # Ray's processes may write their logs a little longer than they are waited for.
    with tempfile.TemporaryDirectory(prefix="dandelion-", ignore_cleanup_errors=True) as home:
        # An empty folder: Ray puts the daemon's working folder before the app's own code.
        environment = flower_environment(Path(home)) | _search_path(config) | ray_folder(home)
        file = Path(home, "run.toml")
        file.write_text(to_toml(settings))
        with run_superlink(Path(home), environment) as log:
            run_id = _start(app_folder(Path(home)), file, config, environment)
            console.print(f"Flower run {run_id}; log {log}", soft_wrap=True, highlight=False)
            status, details = _wait(run_id, environment, log, console)
            if status == "finished:completed":
                return ""
            of_run = _log_of_run(run_id, environment)
        copy = folder / "flower.log"
        folder.mkdir(parents=True, exist_ok=True)
        copy.write_text(log.read_text(errors="replace") + of_run)
    return failure_text(run_id, status, details, copy)


def _log_of_run(run_id: str, environment: Mapping[str, str]) -> str:
    """What the processes of a run have said: Flower keeps it out of the SuperLink's own log."""
    words = [program_path("flwr"), "log", run_id, CONNECTION, "--show"]
    done = subprocess.run(words, env=dict(environment), capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def flower_environment(home: Path) -> dict[str, str]:
    """Variables under which Flower installs nothing, contacts nobody and writes to ``home``."""
    return {
        **os.environ,
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def ray_folder(home: str) -> dict[str, str]:
    """The variable that puts Ray's files, which it never removes, into ``home``: if sockets fit."""
    return {"RAY_TMPDIR": home} if len(os.fsencode(home)) <= RAY_ROOM else {}


def _search_path(config: Config) -> dict[str, str]:
    """The variable by which Flower's processes find the module of the run's own problem."""
    if not config.model.app:
        return {}
    paths = [os.environ.get("PYTHONPATH", ""), config.run.app_dir]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def write_connection(home: Path, name: str, address: str, root: Path | None) -> None:
    """Point ``flwr`` commands to the SuperLink at ``address``; use TLS if ``root`` is given.

    Args:
        home: the folder of ``flower_environment``.
        name: by which commands select the connection.
        address: HOST:PORT.
        root: the certificate of the SuperLink's authority.
    """
    trust = "insecure = true" if root is None else f'root-certificates = "{root}"'
    (home / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "{name}"\n\n[superlink.{name}]\naddress = "{address}"\n{trust}\n'
    )


def program_path(name: str) -> str:
    """The path of one of Flower's programs in this Python installation."""
    return str(Path(sys.executable).parent / name)


def run_flwr(words: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run one of Flower's commands and return its answer.

    Raises:
        EngineError: the command did not answer in JSON, or reports a failure.
    """
    done = subprocess.run(
        [program_path("flwr"), *words, "--format", "json"],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        output = f"{done.stdout}{done.stderr}".strip()
        raise EngineError(f"flwr {words[0]} failed: {output}") from error
    if not isinstance(answer, dict) or answer.get("success") is False:
        raise EngineError(f"flwr {words[0]} failed: {answer}")
    return answer


@contextmanager
def run_superlink(home: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """Run a simulation SuperLink in an empty folder; end it with everything that it started."""
    port, empty, log = free_port(), home / "empty", home / "superlink.log"
    empty.mkdir()
    (home / "flwr").mkdir()
    write_connection(home, CONNECTION, f"127.0.0.1:{port}", None)
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
        process = start_tree(command, empty, environment, file)
    try:
        _await_port(port, process, log)
        yield log
    finally:
        end_tree(process)


def free_port() -> int:
    """Find a TCP port that is free now."""
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


def app_folder(home: Path) -> Path:
    """The folder that ``flwr run`` takes: a copy of what an app is made of.

    Flower looks at every file of the folder; in a checkout those of ``.venv`` and ``.git`` would be
    among them, which takes seconds. Of ``dandelion`` only its table of public names is part of an
    app: a problem of one's own imports them from there.

    Args:
        home: where the copy is made, in a folder ``app``; a former one is replaced.
    """
    folder, project = home / "app", ROOT / PROJECT
    shutil.rmtree(folder, ignore_errors=True)
    for package in OWN_PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    (folder / "dandelion").mkdir()
    shutil.copy(ROOT / PUBLIC, folder / PUBLIC)
    shutil.copy(project if project.exists() else INSTALLED_PROJECT, folder / PROJECT)
    return folder


def _start(app: Path, file: Path, config: Config, environment: Mapping[str, str]) -> str:
    """Start a run of an app with the settings of a file; return Flower's number of it."""
    nodes, cores = config.federation.num_clients, config.run.threads
    federation = f"num-supernodes={nodes} client-resources-num-cpus={cores}"
    words = ["run", str(app), CONNECTION, "--run-config", str(file)]
    answer = run_flwr([*words, "--federation-config", federation], environment)
    try:
        return str(answer["run-id"])
    except KeyError as error:
        raise EngineError(f"flwr run did not start: {answer}") from error


def _wait(
    run_id: str, environment: Mapping[str, str], log: Path, console: Console
) -> tuple[str, str]:
    """Print the run's progress until it has finished; return its last status and the details."""
    shown, last_query = 0, time.monotonic()
    while True:
        time.sleep(LOOK_S)
        text = log.read_text(errors="replace")
        lines = progress_lines(text)
        for line in lines[shown:]:
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        shown = len(lines)
        if not has_ended(text, run_id) and time.monotonic() - last_query < POLL_S:
            continue
        last_query = time.monotonic()
        answer = run_flwr(["ls", CONNECTION, "--run-id", run_id], environment)
        try:
            row = answer["runs"][0]
            status = str(row["status"])
        except (KeyError, IndexError) as error:
            raise EngineError(f"flwr ls failed: {answer}") from error
        if status.startswith("finished"):
            return status, str(row.get("status-details", ""))
