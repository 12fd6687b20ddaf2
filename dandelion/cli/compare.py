"""``dandelion compare``: what each method costs in bytes, forward passes and time for its loss."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from shared.base.errors import ConfigError
from shared.base.options import Value

if TYPE_CHECKING:
    from shared.config.schema import Config

console = Console()
MOST_ROUNDS = 1_000_000  # more than any budget is enough for


def compare(  # noqa: PLR0913, PLR0917  (options of a command)
    methods: Annotated[str, typer.Option(help="Names with commas.")] = "",
    preset: Annotated[str, typer.Option(help="merged or three-modes.")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[METHOD:]KEY=VALUE", help="A setting of all or of one."),
    ] = None,
    target_loss: Annotated[float | None, typer.Option(help="Costs are counted to here.")] = None,
    seconds: Annotated[float, typer.Option(help="Stop each method after so many.")] = 0.0,
    forwards: Annotated[float, typer.Option(help="Or after so many passes per client.")] = 0.0,
    name: Annotated[str, typer.Option(help="Name of the folder.")] = "",
) -> None:
    """Train several methods from the same start and compare what they cost."""
    from dandelion.compare.methods import configurations
    from dandelion.compare.page import page
    from dandelion.compare.pictures import draw
    from dandelion.compare.runner import Budget
    from dandelion.compare.runner import compare as run_all
    from shared.replica.snapshot import write_atomically

    if preset and methods:
        raise ConfigError("--methods or --preset expected, got both")
    pairs = settings or []
    parent = next((p.partition("=")[2] for p in pairs if p.startswith("output-dir=")), "runs")
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = Path(parent, name or f"compare-{preset or 'methods'}-{stamp}").resolve()
    if folder.exists():
        raise ConfigError(f"{folder}: there already; choose another --name")
    base: dict[str, Value] = {"save-model": False}
    if seconds or forwards:  # these end a method, and no number of rounds before
        base |= {"num-rounds": MOST_ROUNDS, "preflight-rounds": 0}
    pairs = [*(p for p in pairs if not p.startswith("output-dir=")), f"output-dir={folder}"]
    configs = configurations(methods, preset, pairs, base)
    check(configs.values())
    found = run_all(configs, folder, target_loss, Budget(seconds, forwards), say)
    write_atomically(folder / "comparison.html", page(found).encode())
    files = [folder / "comparison.json", folder / "comparison.html", *draw(found, folder)]
    show(found)
    for file in files:
        say(str(file))


def check(configs: "Iterable[Config]") -> None:
    """Refuse what no run of the comparison could do.

    Raises:
        ConfigError: an unknown model, too few sites, or a schedule without an end.
    """
    from dandelion.settings.gather import check_sites
    from shared.models.hub import check_name

    for config in configs:
        check_name(config.model.name)
        check_sites(config)
        if config.num_rounds == MOST_ROUNDS and config.lr_schedule != "constant":
            raise ConfigError(
                f"lr-schedule {config.lr_schedule!r} with a budget: it falls towards the last "
                "round, so set num-rounds as well"
            )


def show(comparison: dict[str, object]) -> None:
    """Print verdicts and table."""
    from dandelion.compare.page import table_rows

    head, rows = table_rows(comparison)
    table = Table(*head, title=f"to a held-out loss of {comparison['target_loss']:.4f}")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    verdicts = comparison["verdicts"]
    for verdict in verdicts if isinstance(verdicts, list) else []:
        say(str(verdict))


def say(line: str) -> None:
    """Print a line as it is, however long."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)
