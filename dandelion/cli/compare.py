"""``dandelion compare``: the bytes, forward passes and time that each method needs for its loss."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from dandelion.cli.console import FolderNameOption, say, show_table
from dandelion.settings.command_options import common_settings, merge_common
from shared.base.errors import ConfigError
from shared.base.options import Value
from shared.config.schema import Config

MOST_ROUNDS = 1_000_000  # more than any budget allows


@common_settings("mode", preset=False)
def compare(  # noqa: PLR0913, PLR0917  (options of a command)
    common: dict[str, Value],
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")] = "",
    preset: Annotated[
        str, typer.Option(help="Several methods by one name: merged or three-modes.")
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="[METHOD:]KEY=VALUE", help="A setting of all methods, or of one."
        ),
    ] = None,
    target_loss: Annotated[float | None, typer.Option(help="Count costs up to this loss.")] = None,
    seconds: Annotated[float, typer.Option(help="Stop each method after so many seconds.")] = 0.0,
    forwards: Annotated[
        float, typer.Option(help="Stop each after so many passes per client.")
    ] = 0.0,
    rates: Annotated[
        int, typer.Option(min=1, help="Try each method at so many learning rates; the best counts.")
    ] = 3,
    name: FolderNameOption = "",
) -> None:
    """Train several methods from the same start, and compare their costs."""
    from dandelion.compare.methods import configurations
    from dandelion.compare.presentation import draw, page
    from dandelion.compare.runner import Budget
    from dandelion.compare.runner import compare as run_all
    from shared.base.files import write_atomically

    if preset and methods:
        raise ConfigError("--methods or --preset expected, got both")
    folder, pairs = _choose_folder(name, preset, merge_common(settings or [], common))
    base: dict[str, Value] = {"save-model": False}
    if seconds or forwards:  # the budget alone ends a method
        base |= {"num-rounds": MOST_ROUNDS, "preflight-rounds": 0}
    configs = configurations(methods, preset, pairs, base)
    for config in configs.values():
        _check(config)
    if rates > 1:
        say(f"{len(configs)} methods at {rates} learning rates each: {rates * len(configs)} runs")
    budget = Budget(seconds, forwards)
    comparison = run_all(configs, folder, target_loss, budget, say, rates)
    write_atomically(folder / "comparison.html", page(comparison).encode())
    files = [folder / "comparison.json", folder / "comparison.html", *draw(comparison, folder)]
    show(comparison)
    for file in files:
        say(str(file))


def _choose_folder(name: str, preset: str, pairs: list[str]) -> tuple[Path, list[str]]:
    """Choose the comparison's folder; return it, and the pairs with ``output-dir`` set to it.

    Raises:
        ConfigError: the folder exists.
    """
    from dandelion.settings.gather import key_of

    parent = next((p.partition("=")[2] for p in pairs if key_of(p) == "output-dir"), "runs")
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = Path(parent, name or f"compare-{preset or 'methods'}-{stamp}").expanduser().resolve()
    if folder.exists():
        raise ConfigError(f"{folder} exists already; choose another --name")
    others = [pair for pair in pairs if key_of(pair) != "output-dir"]
    return folder, [*others, f"output-dir={folder}"]


def _check(config: Config) -> None:
    """Refuse a configuration that this command cannot run.

    Raises:
        ConfigError: an unknown model, too few sites, or a schedule without a number of rounds.
    """
    from dandelion.settings.gather import check_sites
    from shared.models.load import check_name

    check_name(config.model.name)
    check_sites(config)
    if config.training.rounds == MOST_ROUNDS and config.optimizer.schedule != "constant":
        raise ConfigError(
            f"lr-schedule {config.optimizer.schedule!r} with a budget: it falls towards the last "
            "round, so set num-rounds as well"
        )


def show(comparison: dict[str, object]) -> None:
    """Print the table and the verdicts of a comparison."""
    from dandelion.compare.presentation import about_text, table_rows

    say(about_text(comparison))
    titles, rows = table_rows(comparison)
    table = Table(
        *map(escape, titles), title=f"to a held-out loss of {comparison['target_loss']:.4f}"
    )
    for row in rows:
        table.add_row(*map(escape, row))
    show_table(table)
    verdicts = comparison["verdicts"]
    for verdict in verdicts if isinstance(verdicts, list) else []:
        say(str(verdict))
