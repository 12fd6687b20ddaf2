"""The ``dandelion`` command."""

import logging
import signal
import sqlite3
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from dandelion.cli import bench as bench_cli
from dandelion.cli import client as client_cli
from dandelion.cli import compare as compare_cli
from dandelion.cli import data as data_cli
from dandelion.cli import ledger as ledger_cli
from dandelion.cli import models as models_cli
from dandelion.cli import preflight as preflight_cli
from dandelion.cli import server as server_cli
from dandelion.cli import settings as settings_cli
from dandelion.cli import sweep as sweep_cli
from shared.base.errors import DandelionError, UnknownNameError

ENGINES = ("local", "flower")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated training of language models in which sites send numbers, not models.",
)
app.add_typer(ledger_cli.app, name="ledger")
app.add_typer(bench_cli.app, name="bench")
app.add_typer(data_cli.app, name="data")
app.add_typer(server_cli.app, name="server")
app.add_typer(client_cli.app, name="client")
app.command()(compare_cli.compare)
app.command()(preflight_cli.preflight)
app.command()(sweep_cli.sweep)
app.command()(models_cli.models)
app.command()(settings_cli.settings)
console = Console()


@app.callback()
def main(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")] = False,
) -> None:
    """Set logging up once for every command, and end what was started when told to end."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
    handler = RichHandler(console=console, show_path=False, show_time=False)
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])
    for name in ("flwr", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _terminated(number: int, frame: FrameType | None) -> None:
    """Leave through every ``finally``, so that no SuperLink stays behind."""
    raise SystemExit(128 + number)


@app.command()
def run(  # noqa: PLR0913, PLR0917  (options of a command)
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; repeatable.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings.")] = None,
    engine: Annotated[
        str, typer.Option(help="local (in this process) or flower (simulation).")
    ] = "local",
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    name: Annotated[str, typer.Option(help="Name of the run folder.")] = "",
    preset: preflight_cli.Preset = "",
    model: preflight_cli.Model = "",
) -> None:
    """Train: a new run, or one that was cut off."""
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    from dandelion.engines.flower_simulation import run_flower
    from dandelion.engines.local import run_local
    from dandelion.monitor.progress import Live, show_summary
    from dandelion.settings.gather import gather

    chosen = gather(
        config, settings or [], resume, **{"run-name": name, "preset": preset, "model": model}
    )
    if engine == "flower":
        folder = run_flower(chosen, console)
    else:
        with Live(console) as live:
            folder = run_local(chosen, live)
    show_summary(console, folder)


@app.command()
def plot(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Draw loss.png of a run anew, also while it runs."""
    from server.reporting.loss_plot import draw_losses

    with ledger_cli.ledger_of(folder) as ledger:
        draw_losses(ledger, folder / "loss.png")
    console.print(f"{folder / 'loss.png'}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until ^C.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.")] = 2.0,
) -> None:
    """Show a run as it stands: rounds, loss, bytes; nodes with device, lag and last error."""
    from dandelion.monitor.status import picture_of, watch

    if follow:
        watch(folder, console, every)
    else:
        console.print(picture_of(folder))


@app.command()
def tensorboard(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until ^C.")] = False,
) -> None:
    """Write a run's scalars for TensorBoard into the run folder, also while it trains."""
    from dandelion.monitor.tensorboard import write

    path = write(folder, follow_s=5.0 if follow else 0.0)
    console.print(f"{path}", soft_wrap=True, highlight=False, markup=False)


def entry() -> None:
    """Run the command; an error that is not ours to mend ends in one clear line and status 2."""
    try:
        app()
    except (DandelionError, OSError, sqlite3.Error) as error:
        line = f"{type(error).__name__}: {error}"
        Console(stderr=True).print(line, style="red", soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)
