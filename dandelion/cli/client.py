"""``dandelion client``: runs a SuperNode and its ClientApps, and restarts them when they end."""

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Annotated

import typer

from client.site.node_config import NodeConfig
from client.worker.paths import WorkerPaths, paths_at, paths_of
from dandelion.cli.console import HomeOption, StockOption, say
from dandelion.deployment.deploy_home import (
    CLIENT_APP_MODULES,
    Home,
    default_home,
    programs,
    superexec_command,
    supernode_command,
)
from dandelion.deployment.site_guard import config_of_apps, guard_program, node_config
from dandelion.deployment.supervisor import Keeper, Program, find_process, write_pid
from dandelion.engines.flower_simulation import EngineError, free_port
from dandelion.privacy.site_commands import budget_app, key, secret

app = typer.Typer(no_args_is_help=True, help="Commands of a site in a federation.")
app.add_typer(budget_app, name="budget")
app.command()(secret)
app.command("key")(key)
NodeSettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A key of the node's config; repeatable."),
]
AppFolderOption = Annotated[
    Path | None, typer.Option("--app-dir", help="Folder with the module of the run's own problem.")
]
SAME_USER = (
    "The guard runs as this user, and so does the code of a run: it could read what this user can. "
    "A user of its own prevents that: 'dandelion client guard', then 'client join --guard SOCKET'."
)
REACTIVATION_S = 90.0  # for 60 s Flower refuses a key whose last process vanished
HANGS_AFTER = (
    "SSL/TLS handshake error detected"  # Flower 1.41: its main thread ends, its process stays
)
JOINED = "SuperNode ID:"
NOT_ACTIVATED = "Failed to activate SuperNode"  # Flower's words for both of these
UNREGISTERED = (
    "the server knows no such key: have it registered there with "
    "'dandelion server register KEY.pub', or give another --key"
)
IN_USE = (
    "the key is in use: another process has joined with it. End that one, or wait: the key of a "
    "process that was killed is free after 60 s"
)
REASONS = re.compile(r"(Exit Code: \d+|\[code: \d+\].*|certificate verify failed.*)")


@app.callback()
def main() -> None:
    """Commands of a site."""


@app.command()
def join(  # noqa: PLR0913, PLR0917  (options of a command)
    superlink: Annotated[str, typer.Argument(help="HOST:PORT of the SuperLink.")],
    settings: NodeSettingsOption = None,
    folder: HomeOption = None,
    ca: Annotated[Path | None, typer.Option(help="The ca.crt of the federation.")] = None,
    key: Annotated[Path | None, typer.Option(help="This node's registered private key.")] = None,
    insecure: Annotated[bool, typer.Option(help="Connect without TLS.")] = False,
    port: Annotated[int, typer.Option(help="Local port of the SuperNode; 0: any.")] = 0,
    patience: Annotated[
        float, typer.Option(help="Give up after so many seconds of failing starts.")
    ] = REACTIVATION_S,
    app_dir: AppFolderOption = None,
    guard: Annotated[
        Path | None,
        typer.Option(help="Socket of a guard that runs already, perhaps as another user."),
    ] = None,
    stock: StockOption = False,
) -> None:
    """Run a SuperNode and the site's guard in the foreground, and restart what ends."""
    if (ca is None) is not insecure:
        raise EngineError("either --ca FILE or --insecure expected")
    if guard is not None and (settings or app_dir):
        raise EngineError("--guard SOCKET: --set and --app-dir belong to 'dandelion client guard'")
    home = Home.at(folder or default_home("node"))
    own: list[Program] = []
    if guard is None:
        config = node_config(settings or [], home, app_dir)
        own, guard = [guard_program(home, config)], paths_of(config).socket
    text, port = config_of_apps(guard.resolve()), port or free_port()
    if (pid := find_process(home.pid)) is not None:
        raise EngineError(f"{home.folder}: process {pid} already runs this node: end it first")
    commands = {
        "supernode": supernode_command(home, superlink, text, port, (ca, key), stock),
        "superexec": superexec_command(home, f"127.0.0.1:{port}", None, stock),
    }
    if own:
        say(SAME_USER)
        _end_worker(paths_of(config))
    write_pid(home.pid, os.getpid())
    try:
        _supervise(home, own, commands, patience, superlink)
    finally:
        home.pid.unlink(missing_ok=True)


@app.command()
def guard(
    settings: NodeSettingsOption = None,
    folder: HomeOption = None,
    socket: Annotated[
        Path | None, typer.Option(help="Where ClientApps reach it; by default for this user alone.")
    ] = None,
    group: Annotated[str, typer.Option(help="Group whose members may reach the socket.")] = "",
    app_dir: AppFolderOption = None,
) -> None:
    """Answer for a site's data, in the foreground: the one process that reads them."""
    from client.guard.process import run_guard

    if group and socket is None:
        raise EngineError("--group with --socket expected: the default is for one user alone")
    home = Home.at(folder or default_home("node"))
    config = node_config(settings or [], home, app_dir)
    node = NodeConfig.of(config)
    paths = paths_at(socket.resolve(), Path(node.store)) if socket else paths_of(config)
    os.chdir(home.empty)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    run_guard(config, paths, node.worker_idle, group)


def _supervise(
    home: Home, own: list[Program], commands: dict[str, list[str]], patience: float, superlink: str
) -> None:
    """Keep a node's programs, its guard among them, running until a signal comes.

    Raises:
        EngineError: a program has failed to start for ``patience`` seconds.
    """
    supervised = {each.name: each for each in own} | programs(home, commands, CLIENT_APP_MODULES)
    node = supervised["supernode"]
    node.fatal, node.well, node.news = HANGS_AFTER, JOINED, f"is connected to {superlink}"
    node.waits_for = "superexec"  # for ever, if a task is lost between its claim and its start
    for each in supervised.values():
        each.log.unlink(missing_ok=True)
    shutil.rmtree(home.apps, ignore_errors=True)

    def tell(text: str) -> None:
        say(text)
        if text.endswith(node.news):
            _note_joined(home, superlink)

    keeper = Keeper([*supervised.values()], tell)
    lost = keeper.run(lambda each, status: each.seconds_failing() > patience)
    if lost is None:
        say("The node has left; its replica stays on disk.")
    elif lost.name == "supernode":
        reason = explain(lost.tail(6000), superlink in _servers_before(home))
        raise EngineError(f"the SuperNode was refused: {reason}; its log: {lost.log}")
    else:
        raise EngineError(f"the {lost.name} does not start: {lost.tail(500)}; its log: {lost.log}")


def explain(log: str, was_in: bool) -> str:
    """Why a SuperNode was refused, from its log, and what to do.

    Flower has the same words for a key that it does not know and for one that is in use. A key that
    this server has let in before is known there.
    """
    reason = find_reason(log)
    if NOT_ACTIVATED not in reason:
        return reason
    return f"{IN_USE if was_in else UNREGISTERED} ({reason})"


def _servers_before(home: Home) -> list[str]:
    return home.joined.read_text().splitlines() if home.joined.exists() else []


def _note_joined(home: Home, superlink: str) -> None:
    servers = dict.fromkeys([*_servers_before(home), superlink])
    home.joined.write_text("".join(f"{server}\n" for server in servers))


def find_reason(log: str) -> str:
    """The lines of Flower's log that name a reason, or else its end."""
    reasons = list(dict.fromkeys(REASONS.findall(log)))
    return "; ".join(reasons) or log[-500:]


def _end_worker(paths: WorkerPaths) -> None:
    """End what does this node's work and was left here; its replica stays on disk."""
    from client.worker.client import end

    paths.store.mkdir(mode=0o700, parents=True, exist_ok=True)
    end(paths)
