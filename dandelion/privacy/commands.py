"""``dandelion privacy``: what a promise costs, before a run is made."""

from collections.abc import Sequence
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dandelion.monitor.tables import print_table
from shared.base.errors import ConfigError

if TYPE_CHECKING:
    from dandelion.privacy.plan import PlanRow
    from shared.config.schema import Config

app = typer.Typer(no_args_is_help=True, help="What privacy costs in noise and in accuracy.")
console, notes = Console(), Console(stderr=True)


@app.callback()
def main() -> None:
    """Commands that answer before a run is made."""


@app.command()
def plan(  # noqa: PLR0913, PLR0917  (options of a command)
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; repeatable.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="A TOML file of settings.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Settings for a whole task.")] = "",
    examples: Annotated[
        int, typer.Option(help="Examples of a site; 0: as the run's data are dealt.")
    ] = 0,
    epsilon: Annotated[
        str, typer.Option(help="Promises with commas; inf: no privacy.")
    ] = "inf,8,4,2,1",
    slopes: Annotated[
        bool, typer.Option("--slopes", help="Measure the slopes that privacy-clip bounds.")
    ] = False,
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="Train at each promise on the server's own data.")
    ] = False,
    rates: Annotated[
        str, typer.Option(help="Learning rates with commas; each promise takes its best.")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each promise; the median counts.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
) -> None:
    """Show the noise that each epsilon needs, and what is learned with it."""
    from dandelion.privacy.plan import draw_table, examples_of_site, plan_noise
    from dandelion.privacy.trials import Trials
    from dandelion.settings.gather import gather
    from shared.training.server_choices import resolve_choices

    tried = read_numbers("--rates", rates) if rates else []
    promises = read_numbers("--epsilon", epsilon)
    pairs = as_private_run(settings or [])
    chosen = resolve_choices(gather(config, pairs, None, preset=preset))
    if not chosen.zo.batch_size:
        raise ConfigError("zo-batch-size: a number above 0 expected: it is the batches' mean size")
    if slopes or (accuracy and not chosen.privacy.clip):
        chosen = _measure_clip(chosen)
    count = examples or examples_of_site(chosen)
    rows = plan_noise(chosen, count, promises)
    if accuracy:
        with TemporaryDirectory() as folder:
            trials = Trials(chosen, Path(folder), seeds, tried)
            rows = [_announce(trials.measure(row)) for row in rows]
    print_table(console, draw_table(chosen, count, rows), as_json)


def _measure_clip(chosen: "Config") -> "Config":
    """Say the median slope; it becomes the clip of settings that have none."""
    from dandelion.privacy.plan import median_slope

    median = median_slope(chosen)
    notes.print(f"median slope of the server's examples: {median:.3g}", highlight=False)
    return chosen if chosen.privacy.clip else chosen.replace(privacy_clip=float(f"{median:.2g}"))


def _announce(row: "PlanRow") -> "PlanRow":
    """Say what a promise costs as soon as it is known: all of them take long."""
    from dandelion.privacy.plan import spread_text

    losses = spread_text(row.losses, ".4f")
    notes.print(f"epsilon {row.epsilon:g}: held-out loss {losses}", highlight=False)
    return row


def as_private_run(pairs: Sequence[str]) -> list[str]:
    """The pairs of settings; with a ``privacy-clip`` they are those of a private run.

    Each row of the plan has a promise of its own, so the settings need not have one.
    """
    has_clip = any(pair.startswith("privacy-clip=") for pair in pairs)
    return [*(["privacy=local", "privacy-epsilon=1"] if has_clip else []), *pairs]


def read_numbers(option: str, text: str) -> list[float]:
    """The numbers above 0 of a list with commas.

    Raises:
        ConfigError: one is none; names the option.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [0.0]
    if not all(0 < value <= inf for value in values):
        raise ConfigError(f"{option}: numbers above 0 with commas expected, got {text!r}")
    return values
