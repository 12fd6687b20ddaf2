"""``dandelion server``: Flower's programs with the flags that a real federation needs."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dandelion.deployment.deploy_home import (
    CONNECTION,
    SERVER_APP,
    Home,
    StockOption,
    default_home,
    near,
    program,
    programs,
    superexec_command,
    superlink_command,
)
from dandelion.deployment.supervisor import Keeper, alive, printed
from dandelion.engines.flower_simulation import APP, EngineError
from shared.config.schema import to_toml

app = typer.Typer(no_args_is_help=True, help="The server's side of a federation.")
console = Console()
MOST_DEATHS = 5  # of one program in a row, before it has run for a while
UP_S, STOP_S = 90.0, 30.0
POLL_FIRST_S, POLL_LAST_S = 1.0, 10.0  # each look is a process of Flower's: a second of a core

HomeOption = Annotated[Path | None, typer.Option("--home", help="Where everything is kept.")]


def say(text: str) -> None:
    """Print a line as it is."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


@app.command()
def up(
    home: HomeOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The one port that nodes need.")] = 8000,
    certificates: Annotated[
        Path | None, typer.Option(help="Folder with ca.crt, server.crt, server.key.")
    ] = None,
    insecure: Annotated[bool, typer.Option(help="No TLS, any node may join.")] = False,
    stock: StockOption = False,
) -> None:
    """Keep SuperLink and SuperExec running, in the foreground."""
    if (certificates is None) is not insecure:
        raise EngineError("either --certificates FOLDER or --insecure expected")
    place = Home.at(home or default_home("server"))
    if (pid := alive(place.pid)) is not None:
        raise EngineError(f"{place.folder}: process {pid} keeps a server up already")
    root = certificates / "ca.crt" if certificates else None
    place.connect(near(host, port), root.resolve() if root else None)
    commands = {
        "superlink": superlink_command(place, host, port, certificates),
        "superexec": superexec_command(place, near(host, port), root, stock),
    }
    keeper = Keeper([*programs(place, commands, SERVER_APP).values()], say)
    place.pid.write_text(str(os.getpid()))
    try:
        lost = keeper.run(lambda each, status: each.deaths >= MOST_DEATHS)
    finally:
        place.pid.unlink(missing_ok=True)
    if lost is not None:
        raise EngineError(f"{lost.name} died {lost.deaths} times: {lost.log}: {lost.tail()}")


@app.command()
def run(
    home: HomeOption = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; repeatable.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    name: Annotated[str, typer.Option(help="Name of the run folder.")] = "",
) -> None:
    """Train over the nodes that are there; status 0 only where the run completed."""
    from dandelion.engines.flower_simulation import check_unmerged
    from dandelion.monitor.progress import show_summary
    from dandelion.settings.gather import gather_deployed
    from server.ledger.run_folder import run_folder

    place = Home.at(home or default_home("server"))
    given: dict[str, str] = {"run-name": name}
    if not resume and not any(pair.startswith("output-dir=") for pair in settings or []):
        given["output-dir"] = str(place.runs)
    chosen = gather_deployed(config, settings or [], resume, given)
    check_unmerged(chosen, "a deployment")
    folder = run_folder(chosen)
    file = place.folder / "run.toml"
    file.write_text(
        to_toml(
            {**chosen.to_run_config(), "run-name": folder.name, "output-dir": str(folder.parent)}
        )
    )
    run_id = str(_flwr(place, "run", str(APP), CONNECTION, "--run-config", str(file))["run-id"])
    say(f"Flower run {run_id}, run folder {folder}; follow it with: dandelion status {folder}")
    status = _wait(place, run_id)
    if status != "finished:completed":
        log = place.log("superexec")
        raise EngineError(f"Flower run {run_id} ended as {status}; its log: {log}")
    show_summary(console, folder)


@app.command()
def register(
    key: Annotated[Path, typer.Argument(help="The public key of a node, OpenSSH format.")],
    home: HomeOption = None,
) -> None:
    """Let a node join by its key."""
    place = Home.at(home or default_home("server"))
    answer = _flwr(place, "supernode", "register", str(key.resolve()), CONNECTION)
    say(f"registered: {answer}")


@app.command()
def status(home: HomeOption = None) -> None:
    """What is up, which nodes are there, which runs there were; status 1 where nothing answers."""
    place = Home.at(home or default_home("server"))
    pid = alive(place.pid)
    say(f"server process: {pid or 'none'}")
    for node in _flwr(place, "supernode", "list", CONNECTION).get("nodes", []):
        say(f"node {node.get('node-id')}: {node.get('status')}, since {node.get('online-at', '-')}")
    for each in _flwr(place, "ls", CONNECTION).get("runs", []):
        say(f"run {each.get('run-id')}: {each.get('status')}")


@app.command()
def stop(
    home: HomeOption = None,
    run_id: Annotated[str, typer.Option("--run", help="Only this run, by Flower's number.")] = "",
) -> None:
    """End what ``up`` keeps running, or one run."""
    place = Home.at(home or default_home("server"))
    if run_id:
        say(str(_flwr(place, "stop", run_id, CONNECTION)))
        return
    if (pid := alive(place.pid)) is None:
        raise EngineError(f"{place.folder}: no server is up")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while alive(place.pid) is not None:
        if time.monotonic() > deadline:
            raise EngineError(f"process {pid} does not end")
        time.sleep(0.1)


def _wait(place: Home, run_id: str) -> str:
    """The run's last status; a SuperLink that is away for a while is waited for."""
    away, pause = 0.0, POLL_FIRST_S
    while True:
        time.sleep(pause)
        pause = min(1.5 * pause, POLL_LAST_S)
        try:
            found = _flwr(place, "ls", CONNECTION, "--run-id", run_id, quiet=True)
            current = str(found["runs"][0]["status"])
        except (EngineError, KeyError, IndexError):
            away = away or time.monotonic()
            if time.monotonic() - away > UP_S:
                raise
            continue
        away = 0.0
        if current.startswith("finished"):
            return current


def _flwr(place: Home, *words: str, quiet: bool = False) -> dict[str, Any]:
    """One of Flower's commands, said aloud, and its answer.

    Raises:
        EngineError: it did not answer in JSON, or says that it failed.
    """
    command = [program("flwr"), *words, "--format", "json"]
    if not quiet:
        say(f"$ FLWR_HOME={place.folder / 'flwr'} {printed(command)}")
    done = subprocess.run(
        command, env=place.environment(), capture_output=True, text=True, check=False
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        said = f"{done.stdout}{done.stderr}".strip()
        raise EngineError(f"flwr {words[0]} failed: {said}") from error
    if not isinstance(answer, dict) or answer.get("success") is False:
        raise EngineError(f"flwr {words[0]} failed: {answer}")
    return answer
