"""The ``dandelion`` command: its sub-commands, and those that train or watch a run."""

import logging
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from dandelion.api.ledgers import ledger_of
from dandelion.api.runs import ENGINES, engine_of, train_local
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
from dandelion.cli.console import (
    ConfigOption,
    FollowOption,
    JsonOption,
    ResumeOption,
    RunArgument,
    RunNameOption,
    SettingsOption,
    console,
    say,
    show_run,
    show_table,
)
from dandelion.export import commands as export_cli
from dandelion.privacy import commands as privacy_cli
from dandelion.settings.command_options import check_common, common_settings
from shared.base.errors import ConfigError, DandelionError
from shared.base.options import Value
from shared.base.text import LINES, escape_text

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train language models with federated zeroth-order learning: sites send scalars.",
)
TRAIN, INSPECT, FEDERATE, MEASURE = "Train", "Inspect", "Federate", "Measure"  # panels of --help


def _print_version(is_given: bool) -> None:
    if is_given:
        from importlib.metadata import version

        say(f"dandelion {version('dandelion')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")] = False,
) -> None:
    """Set up logging and the handling of SIGTERM for every command."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    handler = RichHandler(console=console, show_path=False, show_time=False)
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])
    for name in ("flwr", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Exit through every ``finally``, so that no SuperLink is left running."""
    raise SystemExit(128 + number)


@app.command(epilog="All settings: dandelion settings", rich_help_panel=TRAIN)
@common_settings()
def run(  # noqa: PLR0913, PLR0917  (options of a command)
    common: dict[str, Value],
    settings: SettingsOption = None,
    config: ConfigOption = None,
    engine: Annotated[
        str,
        typer.Option(
            help="local (in this process) or flower (simulation).",
            autocompletion=lambda incomplete: [
                name for name in ENGINES if name.startswith(incomplete)
            ],
        ),
    ] = "local",
    resume: ResumeOption = None,
    name: RunNameOption = "",
    ladder: Annotated[
        bool, typer.Option("--ladder", help="Train scope after scope of the preset while it pays.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a new run, or continue one that was interrupted."""
    from dandelion.settings.gather import gather

    train = engine_of(engine)
    check_common(settings or [], common)
    given = {**common, **({"run-name": name} if name else {})}
    if ladder:
        return _climb_ladder(settings or [], given, name, (engine, config, resume))
    chosen = gather(config, settings or [], resume, **given)
    show_run(train(chosen, console), as_json)


def _climb_ladder(
    pairs: list[str],
    given: dict[str, Value],
    name: str,
    others: tuple[str, Path | None, Path | None],
) -> None:
    """Train the rungs of a preset's ladder in one folder; print a line for each.

    Raises:
        ConfigError: another engine, a file or a run to resume is given; or the folder exists.
    """
    from dandelion.comparisons.ladder import best, climb
    from dandelion.settings.gather import gather, read_pairs
    from dandelion.settings.presets import ladder_of

    if others != ("local", None, None):
        raise ConfigError("--ladder works with the local engine, without --config and --resume")
    plain = read_pairs(pairs) | {key: value for key, value in given.items() if value != ""}
    scopes = ladder_of(plain)
    folder = Path(str(plain.get("output-dir", "runs")), name or f"ladder-{plain.get('model', '')}")
    if folder.exists():
        raise ConfigError(f"{folder} exists already; choose another --name")
    configs = {scope: gather(None, [*pairs, f"scope={scope}"], None, **given) for scope in scopes}
    rungs = climb(configs, folder.resolve(), say, lambda rung: train_local(rung, console))
    say(f"{best(rungs).folder}")
    say(f"{folder / 'ladder.png'}")


app.command(rich_help_panel=TRAIN)(preflight_cli.preflight)
app.command(rich_help_panel=TRAIN)(sweep_cli.sweep)


@app.command(rich_help_panel=INSPECT)
def plot(
    folder: RunArgument,
    out: Annotated[Path | None, typer.Option(help="The file; by default RUN/loss.png.")] = None,
) -> None:
    """Draw loss.png of a run again, also while the run goes on."""
    from server.reporting.loss_plot import draw_losses

    with ledger_of(folder) as ledger:
        draw_losses(ledger, path := out or folder / "loss.png")
    say(f"{path}")


@app.command(rich_help_panel=INSPECT)
def report(
    folder: RunArgument,
    out: Annotated[Path | None, typer.Option(help="The file; by default RUN/report.html.")] = None,
) -> None:
    """Write report.html of a run, also while it trains: curves, costs, sites, settings, hashes."""
    from server.ledger.run_folder import read_config
    from server.pages.run_page import write_page

    with ledger_of(folder) as ledger:
        say(f"{write_page(folder, ledger, read_config(ledger), out)}")


@app.command(rich_help_panel=INSPECT)
def status(
    folder: RunArgument,
    follow: FollowOption = False,
    every: Annotated[float, typer.Option(help="Seconds between two updates.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Show a run's rounds, loss and bytes, and its nodes with device, lag and last error."""
    from dandelion.monitor.status import render, watch

    if follow:
        watch(folder, console, every)
    else:
        show_table(render(folder), as_json)


@app.command(rich_help_panel=INSPECT)
def tensorboard(folder: RunArgument, follow: FollowOption = False) -> None:
    """Write a run's scalars for TensorBoard into its folder, also while it trains."""
    from dandelion.monitor.tensorboard import write

    path = write(folder, follow_s=5.0 if follow else 0.0)
    say(f"{path}")


app.command(rich_help_panel=INSPECT)(models_cli.models)
app.command(rich_help_panel=INSPECT)(settings_cli.settings)
app.command(rich_help_panel=INSPECT)(export_cli.export)
app.add_typer(ledger_cli.app, name="ledger", rich_help_panel=INSPECT)
app.add_typer(data_cli.app, name="data", rich_help_panel=INSPECT)
app.add_typer(server_cli.app, name="server", rich_help_panel=FEDERATE)
app.add_typer(client_cli.app, name="client", rich_help_panel=FEDERATE)
app.add_typer(privacy_cli.app, name="privacy", rich_help_panel=FEDERATE)
app.command(rich_help_panel=MEASURE)(compare_cli.compare)
app.command(rich_help_panel=MEASURE)(bench_cli.gpu_check)
app.add_typer(bench_cli.app, name="bench", rich_help_panel=MEASURE)


def entry() -> None:
    """Run the command; print an expected error as one line, and exit with status 2."""
    try:
        app()
    except (DandelionError, OSError) as error:
        line = escape_text(f"{type(error).__name__}: {error}", LINES)
        Console(stderr=True).print(line, style="red", soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)
