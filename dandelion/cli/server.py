"""``dandelion server``: keeps Flower's server programs running, and starts runs on them."""

import os
import secrets
import signal
import time
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from dandelion.cli.console import (
    ConfigOption,
    HomeOption,
    JsonOption,
    ResumeOption,
    RunNameOption,
    SettingsOption,
    StockOption,
    say,
    show_json,
    show_run,
    show_table,
)
from dandelion.deployment.deploy_home import (
    CONNECTION,
    SERVER_APP_MODULES,
    Home,
    default_home,
    local_address,
    programs,
    superexec_command,
    superlink_command,
)
from dandelion.deployment.operator_keys import keys_app, load_key, sign_run
from dandelion.deployment.supervisor import Keeper, find_process, quote, write_pid
from dandelion.engines.flower_reports import failure_text
from dandelion.engines.flower_simulation import EngineError, app_folder, program_path, run_flwr
from dandelion.monitor.tables import all_rows
from dandelion.settings.command_options import check_common, common_settings
from shared.base.options import Value
from shared.base.text import quote_command
from shared.config.schema import Config, to_toml

app = typer.Typer(no_args_is_help=True, help="Commands of a federation's server.")
app.add_typer(keys_app, name="keys")
MOST_DEATHS = 5  # of one program in a row
UP_S, STOP_S = 90.0, 30.0
RUN_FILE = "run.toml"  # the settings of the run that was started last
INTERRUPTED = 130  # the exit status of a command that ^C ended
POLL_FIRST_S, POLL_LAST_S = 1.0, 10.0  # each look is a process of Flower's: a second of a core


@app.command()
def up(
    folder: HomeOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The only port that nodes connect to.")] = 8000,
    certificates: Annotated[
        Path | None, typer.Option(help="Folder with ca.crt, server.crt, server.key.")
    ] = None,
    insecure: Annotated[bool, typer.Option(help="No TLS; any node may join.")] = False,
    stock: StockOption = False,
) -> None:
    """Run SuperLink and SuperExec in the foreground, and restart them if they end."""
    if (certificates is None) is not insecure:
        raise EngineError("either --certificates FOLDER or --insecure expected")
    home = Home.at(folder or default_home("server"))
    if (pid := find_process(home.pid)) is not None:
        raise EngineError(f"{home.folder}: process {pid} already runs a server")
    root = certificates / "ca.crt" if certificates else None
    home.connect(local_address(host, port), root.resolve() if root else None)
    commands = {
        "superlink": superlink_command(home, host, port, certificates),
        "superexec": superexec_command(home, local_address(host, port), root, stock),
    }
    keeper = Keeper([*programs(home, commands, SERVER_APP_MODULES).values()], say)
    write_pid(home.pid, os.getpid())
    try:
        lost = keeper.run(lambda each, status: each.deaths >= MOST_DEATHS)
    finally:
        home.pid.unlink(missing_ok=True)
    if lost is not None:
        raise EngineError(f"{lost.name} died {lost.deaths} times: {lost.log}: {lost.tail()}")


@app.command()
@common_settings()
def run(  # noqa: PLR0913, PLR0917  (options of a command)
    common: dict[str, Value],
    folder: HomeOption = None,
    settings: SettingsOption = None,
    config: ConfigOption = None,
    resume: ResumeOption = None,
    name: RunNameOption = "",
    as_json: JsonOption = False,
    operator_key: Annotated[
        Path | None, typer.Option(help="Sign the run with the key in this file.")
    ] = None,
    valid_hours: Annotated[
        float, typer.Option(help="Sites refuse the signature after so many hours.")
    ] = 168.0,
) -> None:
    """Train with the connected nodes; status 0 only if the run completed."""
    from dandelion.engines.flower_simulation import check_unmerged
    from dandelion.settings.gather import gather_deployed, key_of
    from shared.training.server_choices import resolve_choices

    home = Home.at(folder or default_home("server"))
    check_common(settings or [], common)
    given: dict[str, Value] = {**common, "run-name": name}
    if not resume and not any(key_of(pair) == "output-dir" for pair in settings or []):
        given["output-dir"] = str(home.runs)
    chosen = gather_deployed(config, settings or [], resume, given)
    check_unmerged(chosen, "a deployment")
    _check_task(chosen)
    chosen = resolve_choices(chosen)
    run_id, run_path = _start(home, chosen, operator_key, valid_hours)
    try:
        status, details = _wait(home, run_id)
    except KeyboardInterrupt:
        follow = quote_command("dandelion", "status", run_path)
        end = quote_command("dandelion", "server", "stop", "--home", home.folder, "--run", run_id)
        say(f"The run goes on without this command. Follow it with: {follow}")
        say(f"End it with: {end}")
        raise typer.Exit(INTERRUPTED) from None
    if status != "finished:completed":
        raise EngineError(failure_text(run_id, status, details, home.log("superexec")))
    show_run(run_path, as_json)


def _start(
    home: Home, config: Config, operator_key: Path | None, valid_hours: float
) -> tuple[str, Path]:
    """Start a run on the SuperLink, signed if there is a key; return its number and folder."""
    from server.ledger.run_folder import run_folder

    folder = run_folder(config)
    config = config.replace(run_name=folder.name, output_dir=str(folder.parent), run_request="")
    if operator_key is not None:
        request = sign_run(config, load_key(operator_key), _name_on_wire(config), valid_hours)
        config = config.replace(run_request=request)
    file = home.folder / RUN_FILE
    file.write_text(to_toml(config.to_run_config()))
    words = ("run", str(app_folder(home.folder)), CONNECTION, "--run-config", str(file))
    run_id = str(_flwr(home, *words)["run-id"])
    follow = quote_command("dandelion", "status", folder)
    say(f"Flower run {run_id}, run folder {folder}; follow it with: {follow}")
    return run_id, folder


def _name_on_wire(config: Config) -> bytes:
    """What names a run to its sites: a new one's is chance, a resumed one's is in its ledger."""
    from server.ledger.reader import LedgerReader
    from server.ledger.run_folder import LEDGER

    if not config.run.resume:
        return secrets.token_bytes(16)
    with closing(LedgerReader(Path(config.run.resume) / LEDGER)) as ledger:
        return ledger.header("run")


def _check_task(config: Config) -> None:
    """Make the task of a run that needs words or classes of its model, before anything starts.

    Raises:
        ConfigError: the model does not fit the task, such as words that begin with one token.
    """
    if not config.data.label_words:
        return
    from shared.tasks.task import task_of
    from shared.training.start import load_start

    task_of(config, load_start(config))


@app.command()
def register(
    key: Annotated[Path, typer.Argument(help="A node's public key in OpenSSH format.")],
    folder: HomeOption = None,
) -> None:
    """Register a node's key, so that it may join."""
    home = Home.at(folder or default_home("server"))
    answer = _flwr(home, "supernode", "register", str(key.resolve()), CONNECTION)
    node = answer.get("node-id", "unknown")
    say(f"The key {key} is registered as node {node}; its site may join now, with --key.")


@app.command()
def status(folder: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the server process, nodes, runs, and the newest run's sites; fail without a server."""
    from dandelion.monitor.status import render

    home = Home.at(folder or default_home("server"))
    pid = find_process(home.pid)
    say(f"server process: {pid or 'none'}")
    nodes = _flwr(home, "supernode", "list", CONNECTION).get("nodes", [])
    for node in nodes:
        say(f"node {node.get('node-id')}: {node.get('status')}, since {node.get('online-at', '-')}")
    runs = _flwr(home, "ls", CONNECTION).get("runs", [])
    for each in runs:
        say(f"run {each.get('run-id')}: {each.get('status')}")
    run_path = _newest_run(home)
    table = None if run_path is None else render(run_path)
    if as_json:
        sites = [] if table is None else all_rows(table)
        show_json({"server process": pid, "nodes": nodes, "runs": runs, "sites": sites})
    elif table is not None:
        show_table(table)


@app.command()
def stop(
    folder: HomeOption = None,
    run_id: Annotated[
        str, typer.Option("--run", help="End only this run, by Flower's number.")
    ] = "",
) -> None:
    """End the server that ``up`` runs, or one run."""
    home = Home.at(folder or default_home("server"))
    if run_id:
        say(str(_flwr(home, "stop", run_id, CONNECTION)))
        return
    if (pid := find_process(home.pid)) is None:
        raise EngineError(f"{home.folder}: no server is up")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while find_process(home.pid) is not None:
        if time.monotonic() > deadline:
            raise EngineError(f"process {pid} does not end within {STOP_S:g} s")
        time.sleep(0.1)


def _newest_run(home: Home) -> Path | None:
    """The folder of the run that was started last, once it has a ledger."""
    from server.ledger.run_folder import LEDGER

    if not (file := home.folder / RUN_FILE).exists():
        return None
    settings = tomllib.loads(file.read_text())
    path = Path(settings["output-dir"], settings["run-name"])
    return path if (path / LEDGER).exists() else None


def _wait(home: Home, run_id: str) -> tuple[str, str]:
    """Wait for the run's final status and its details; a SuperLink may be away for ``UP_S``."""
    away_since, pause = 0.0, POLL_FIRST_S
    while True:
        time.sleep(pause)
        pause = min(1.5 * pause, POLL_LAST_S)
        try:
            listing = _flwr(home, "ls", CONNECTION, "--run-id", run_id, quiet=True)
            row = listing["runs"][0]
            current = str(row["status"])
        except (EngineError, KeyError, IndexError):
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > UP_S:
                raise
            continue
        away_since = 0.0
        if current.startswith("finished"):
            return current, str(row.get("status-details", ""))


def _flwr(home: Home, *words: str, quiet: bool = False) -> dict[str, Any]:
    """Run one of Flower's commands, print it unless ``quiet``, and return its answer.

    Raises:
        EngineError: the command did not answer in JSON, or reports a failure.
    """
    if not quiet:
        command = quote([program_path("flwr"), *words, "--format", "json"])
        say(f"$ FLWR_HOME={home.folder / 'flwr'} {command}")
    return run_flwr(words, home.environment())
