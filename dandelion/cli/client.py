"""``dandelion client``: a SuperNode that comes back after whatever happens to it."""

import json
import re
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.site.node_config import NodeConfig
from client.worker.paths import paths_of
from dandelion.deployment.deploy_home import (
    CLIENT_APP,
    Home,
    StockOption,
    default_home,
    programs,
    superexec_command,
    supernode_command,
)
from dandelion.deployment.supervisor import Keeper
from dandelion.engines.flower_simulation import EngineError, free_port
from shared.base.errors import WorkerError

app = typer.Typer(no_args_is_help=True, help="A site's side of a federation.")
console = Console()
REACTIVATION_S = 90.0  # for 60 s Flower refuses a key whose last process vanished
HANGS = "SSL/TLS handshake error detected"  # Flower 1.41: its main thread ends, its process stays
JOINED = "SuperNode ID:"
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
    home: Annotated[Path | None, typer.Option(help="Where everything is kept.")] = None,
    ca: Annotated[Path | None, typer.Option(help="The federation's ca.crt.")] = None,
    key: Annotated[Path | None, typer.Option(help="This node's registered private key.")] = None,
    insecure: Annotated[bool, typer.Option(help="No TLS.")] = False,
    port: Annotated[int, typer.Option(help="A local port of the SuperNode; 0: any.")] = 0,
    patience: Annotated[
        float, typer.Option(help="Seconds of failing starts after which it gives up.")
    ] = REACTIVATION_S,
    stock: StockOption = False,
) -> None:
    """Keep a SuperNode in a federation, in the foreground."""
    if (ca is None) is not insecure:
        raise EngineError("either --ca FILE or --insecure expected")
    place = Home.at(home or default_home("node"))
    config = node_config(settings or [], place)
    text = " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())
    port = port or free_port()
    commands = {
        "supernode": supernode_command(place, superlink, text, port, (ca, key), stock),
        "superexec": superexec_command(place, f"127.0.0.1:{port}", None, stock),
    }
    kept = programs(place, commands, CLIENT_APP)
    kept["supernode"].fatal, kept["supernode"].well = HANGS, JOINED
    for each in kept.values():
        each.log.unlink(missing_ok=True)
    shutil.rmtree(place.apps, ignore_errors=True)
    try:
        lost = Keeper([*kept.values()], say).run(lambda each, status: each.failing() > patience)
    finally:
        _end_worker(config)
    if lost is not None:
        what = "SuperNode was refused" if lost.name == "supernode" else "SuperExec does not start"
        raise EngineError(f"the {what}: {reason(lost.tail(6000))}; log {lost.log}")


def node_config(pairs: list[str], place: Home) -> dict[str, object]:
    """The node's config from the command line, checked, with a store in its home.

    Raises:
        ConfigError: unknown key, bad value, no name.
    """
    config: dict[str, object] = {"store": str(place.folder / "store")}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise EngineError(f"--set key=value expected, got {pair!r}")
        try:
            config[name] = json.loads(text)
        except ValueError:
            config[name] = text
    NodeConfig.of(config)
    return config


def reason(log: str) -> str:
    """The lines of Flower's log that say why."""
    found = list(dict.fromkeys(REASONS.findall(log)))
    return "; ".join(found) or log[-500:]


def say(text: str) -> None:
    """Print a line as it is."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _end_worker(config: dict[str, object]) -> None:
    """The node's worker goes with its node, and keeps its replica."""
    from client.worker.client import end

    try:
        end(paths_of(config))
    except WorkerError as error:
        say(f"{error}")
