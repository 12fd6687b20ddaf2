"""``dandelion sweep``: trains many runs side by side, over a grid or a search of settings."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dandelion.cli.console import (
    ConfigOption,
    FolderNameOption,
    JsonOption,
    console,
    say,
    show_json,
)
from dandelion.settings.command_options import check_common, common_settings
from shared.base.errors import ConfigError
from shared.base.options import Value
from shared.base.text import quote_command

if TYPE_CHECKING:  # the session needs torch, which takes a second
    from dandelion.sweeps.cells import CellResult
    from dandelion.sweeps.plan import SweepPlan

CANCELLED = 130  # exit status after ^C


@common_settings()
def sweep(  # noqa: PLR0913, PLR0917  (options of a command)
    common: dict[str, Value],
    grid: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE,…", help="An axis; repeatable.")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=LOW..HIGH[:log]", help="A range to search; repeatable."),
    ] = None,
    trials: Annotated[int, typer.Option(help="Trials of each cell, with --search; 0: 20.")] = 0,
    parallel: Annotated[
        int, typer.Option(help="Runs at a time; 0: one for each of --gpus, or one.")
    ] = 0,
    gpus: Annotated[str, typer.Option(help="GPUs to assign to runs in turn: 0,1.")] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of all cells.")
    ] = None,
    config: ConfigOption = None,
    name: FolderNameOption = "",
    resume: Annotated[Path | None, typer.Option(help="Continue the sweep in this folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train every combination of the listed values, and compare the results.

    Status 1 if a cell failed.
    """
    from dandelion.settings.gather import read_pairs
    from dandelion.sweeps.plan import TRIALS, SweepPlan, base_of, begin_sweep, resume_sweep

    if resume and (grid or search or trials or settings or config or name or common):
        raise ConfigError(
            "--resume continues a sweep as it was begun: only --parallel and --gpus may be given"
        )
    if trials and not search:
        raise ConfigError(f"--trials {trials} without --search: a grid has one run for each cell")
    if resume:
        folder, plan = resume_sweep(resume)
    else:
        check_common([*(settings or []), *(grid or []), *(search or [])], common)
        base = base_of(config, {**common, **read_pairs(settings or [])})
        plan = SweepPlan(grid or [], search or [], trials or TRIALS, base)
        folder, plan = begin_sweep(plan, name)
    cards = [gpu.strip() for gpu in gpus.split(",") if gpu.strip()]
    results = _train(folder, plan, parallel, cards)
    if as_json:
        show_json([asdict(result) for result in results])
    if any(result.state == "failed" for result in results):
        raise typer.Exit(1)


def _train(folder: Path, plan: "SweepPlan", parallel: int, cards: list[str]) -> "list[CellResult]":
    """Run the cells of a sweep, then report; on ^C report too, and exit."""
    from dandelion.sweeps.session import SweepProgress, SweepSession

    session = SweepSession(folder, plan)
    with SweepProgress(console, folder, plan.count) as bars:
        try:
            session.run(parallel, cards, bars)
        except KeyboardInterrupt:
            resume = quote_command("dandelion", "sweep", "--resume", folder)
            say(f"stopped; continue with: {resume}")
            raise typer.Exit(CANCELLED) from None
        finally:
            report = session.report()
            say(report.summary.rstrip())
            for path in report.files:
                say(str(path))
    return report.results
