"""``dandelion client``: runs a SuperNode and its ClientApps, and restarts them when they end."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Annotated

import typer

from client.privacy.site_secret import load_secret
from client.site.node_config import NodeConfig
from client.worker.paths import paths_of
from dandelion.cli.console import HomeOption, StockOption, say
from dandelion.deployment.deploy_home import (
    CLIENT_APP_MODULES,
    Home,
    default_home,
    programs,
    superexec_command,
    supernode_command,
)
from dandelion.deployment.supervisor import Keeper, find_process, write_pid
from dandelion.engines.flower_simulation import EngineError, free_port
from dandelion.privacy.site_commands import FOLDER, budget_app, secret
from shared.base.errors import WorkerError
from shared.data.local_folder import check_folder
from shared.data.resolve import source_of

app = typer.Typer(no_args_is_help=True, help="Commands of a site in a federation.")
app.add_typer(budget_app, name="budget")
app.command()(secret)
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
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of the node's config; repeatable."),
    ] = None,
    folder: HomeOption = None,
    ca: Annotated[Path | None, typer.Option(help="The ca.crt of the federation.")] = None,
    key: Annotated[Path | None, typer.Option(help="This node's registered private key.")] = None,
    insecure: Annotated[bool, typer.Option(help="Connect without TLS.")] = False,
    port: Annotated[int, typer.Option(help="Local port of the SuperNode; 0: any.")] = 0,
    patience: Annotated[
        float, typer.Option(help="Give up after so many seconds of failing starts.")
    ] = REACTIVATION_S,
    app_dir: Annotated[
        Path | None, typer.Option(help="Folder with the module of the run's own problem.")
    ] = None,
    stock: StockOption = False,
) -> None:
    """Run a SuperNode in the foreground, and restart it whenever it ends."""
    if (ca is None) is not insecure:
        raise EngineError("either --ca FILE or --insecure expected")
    home = Home.at(folder or default_home("node"))
    config = node_config(settings or [], home)
    if app_dir is not None:
        config["app-dir"] = str(app_dir.resolve())
    text = " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())
    port = port or free_port()
    if (pid := find_process(home.pid)) is not None:
        raise EngineError(f"{home.folder}: process {pid} already runs this node: end it first")
    commands = {
        "supernode": supernode_command(home, superlink, text, port, (ca, key), stock),
        "superexec": superexec_command(home, f"127.0.0.1:{port}", None, stock),
    }
    write_pid(home.pid, os.getpid())
    try:
        _supervise(home, commands, patience, superlink)
    finally:
        home.pid.unlink(missing_ok=True)
        _end_worker(config)


def _supervise(home: Home, commands: dict[str, list[str]], patience: float, superlink: str) -> None:
    """Keep a node's programs running until a signal comes.

    Raises:
        EngineError: a program has failed to start for ``patience`` seconds.
    """
    supervised = programs(home, commands, CLIENT_APP_MODULES)
    node = supervised["supernode"]
    node.fatal, node.well, node.news = HANGS_AFTER, JOINED, f"is connected to {superlink}"
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
        raise EngineError(f"the SuperExec does not start: {lost.tail(500)}; its log: {lost.log}")


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


def node_config(pairs: list[str], home: Home) -> dict[str, object]:
    """Parse and check the node's config from the command line; its files are in its home.

    Its secret is made or checked.

    Raises:
        ConfigError: an unknown key, an invalid value, no name of the site, or data that are not
            here.
        BudgetError: others can read its secret.
        EngineError: a pair is not ``key=value``.
    """
    config: dict[str, object] = {
        "store": str(home.folder / "store"),
        "privacy-home": str(home.folder / FOLDER),
    }
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise EngineError(f"--set key=value expected, got {pair!r}")
        try:
            config[name] = json.loads(text)
        except ValueError:
            config[name] = text
    node = NodeConfig.of(config)
    load_secret(Path(node.privacy_home))
    for own in filter(None, (node.data, node.bp_data)):
        source_of(own)
        if Path(own).is_dir():
            check_folder(Path(own), {k.replace("_", "-"): v for k, v in node.columns.items()})
    return config


def find_reason(log: str) -> str:
    """The lines of Flower's log that name a reason, or else its end."""
    reasons = list(dict.fromkeys(REASONS.findall(log)))
    return "; ".join(reasons) or log[-500:]


def _end_worker(config: dict[str, object]) -> None:
    """End the node's worker; its replica stays on disk."""
    from client.worker.client import end

    try:
        end(paths_of(config))
    except WorkerError as error:
        say(f"{error}")
