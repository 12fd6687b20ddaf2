"""``dandelion sweep``: trains many runs side by side, over a grid or a search of settings."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.progress import BarColumn, Progress, TextColumn

from dandelion.cli.console import ConfigOption, FolderNameOption, console, say
from dandelion.settings.command_options import check_common, common_settings
from shared.base.errors import ConfigError
from shared.base.options import Value
from shared.config.schema import Config, flat_settings

if TYPE_CHECKING:  # the runner needs torch, which takes a second
    from dandelion.sweep.cells import CellResult
    from dandelion.sweep.grid import Cell
    from dandelion.sweep.runner import CellSource, RunningCell

PLAN_FILE = "sweep.json"
CANCELLED = 130  # exit status after ^C
TRIALS = 20  # of each cell


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep varies and what all its cells share; ``sweep.json`` in its folder."""

    grid: list[str]
    search: list[str]
    trials: int
    base: dict[str, Value]  # settings of all cells


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
    trials: Annotated[
        int, typer.Option(help=f"Trials of each cell, with --search; 0: {TRIALS}.")
    ] = 0,
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
) -> None:
    """Train every combination of the listed values, and compare the results.

    Status 1 if a cell failed.
    """
    if resume and (grid or search or trials or settings or config or name or common):
        raise ConfigError(
            "--resume continues a sweep as it was begun: only --parallel and --gpus may be given"
        )
    if trials and not search:
        raise ConfigError(f"--trials {trials} without --search: a grid has one run for each cell")
    if resume:
        folder, plan = _resume(resume)
    else:
        check_common([*(settings or []), *(grid or []), *(search or [])], common)
        base = _base(config, settings or [], common)
        plan = SweepPlan(grid or [], search or [], trials or TRIALS, base)
        folder, plan = _begin(plan, name)
    cards = [gpu.strip() for gpu in gpus.split(",") if gpu.strip()]
    results = _train(folder, plan, parallel or len(cards) or 1, cards)
    if any(result.state == "failed" for result in results):
        raise typer.Exit(1)


def _train(folder: Path, plan: SweepPlan, parallel: int, cards: list[str]) -> "list[CellResult]":
    """Run the cells of a sweep, then report; on ^C report too, and exit."""
    from dandelion.sweep.runner import Runner, make_slots

    source, cells, keys = _source(folder, plan)
    slots = make_slots(parallel, cards)
    with _ProgressBars(folder, len(cells) * (plan.trials if plan.search else 1)) as bars:
        try:
            Runner(folder, plan.base, slots, bars).run(source)
        except KeyboardInterrupt:
            say(f"stopped; continue with: dandelion sweep --resume {folder}")
            raise typer.Exit(CANCELLED) from None
        finally:
            results = report(folder, getattr(source, "begun", cells), keys)
    return results


def report(folder: Path, cells: Sequence["Cell"], keys: Sequence[str]) -> "list[CellResult]":
    """Write CSV, summary and pictures of a sweep so far, and print their paths."""
    from dandelion.sweep.cells import CellFiles, CellResult
    from dandelion.sweep.pictures import draw
    from dandelion.sweep.table import summary, write_csv, write_summary

    results = [CellResult.of(CellFiles(folder, cell.name), dict(cell.settings)) for cell in cells]
    write_csv(results, keys, folder / "sweep.csv")
    text = summary(results, keys, f"dandelion sweep --resume {folder}")
    file = write_summary(text, folder)
    say(text.rstrip())
    for path in (folder / "sweep.csv", file, *draw(results, keys, folder)):
        say(str(path))
    return results


class _ProgressBars:
    """A bar for all cells and one for each running cell; without a terminal, plain lines."""

    def __init__(self, folder: Path, total: int) -> None:
        self._folder = folder
        text = TextColumn("{task.description}", markup=False)
        self._progress = Progress(
            BarColumn(bar_width=20), text, console=console, disable=not console.is_terminal
        )
        self._all = self._progress.add_task("cells", total=total)
        self._tasks: dict[str, object] = {}

    def __enter__(self) -> "_ProgressBars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, running: "list[RunningCell]", line: str) -> None:
        from dandelion.sweep.cells import CellFiles

        if line:
            say(line)
            self._progress.advance(self._all)
        if not console.is_terminal:
            return
        for name in self._tasks.keys() - {each.cell.name for each in running}:
            self._progress.remove_task(self._tasks.pop(name))  # type: ignore[arg-type]
        for each in running:
            name = each.cell.name
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, total=None)
            round_, loss, _ = CellFiles(self._folder, name).progress()
            text = f"{name}  round {round_}" + ("" if loss is None else f"  loss {loss:.3f}")
            self._progress.update(self._tasks[name], description=text)  # type: ignore[arg-type]


def _base(file: Path | None, pairs: Sequence[str], common: Mapping[str, Value]) -> dict[str, Value]:
    from dandelion.settings.gather import read_pairs, read_toml, resolve_paths

    given = flat_settings(read_toml(file)) if file else {}  # values are checked with the cells
    return {
        "save-model": False,
        **cast("Mapping[str, Value]", resolve_paths({**given, **common}) | read_pairs(pairs)),
    }


def _begin(plan: SweepPlan, name: str) -> tuple[Path, SweepPlan]:
    from shared.base.files import write_atomically

    if not plan.grid and not plan.search:
        raise ConfigError("--grid key=value,value,… or --search key=low..high expected")
    _check(plan)
    parent = str(plan.base.pop("output-dir", "runs"))
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = Path(parent, name or f"sweep-{stamp}").resolve()
    if folder.exists():
        raise ConfigError(f"{folder} exists already; --resume it, or choose another --name")
    write_atomically(folder / PLAN_FILE, json.dumps(asdict(plan), indent=1).encode())
    return folder, plan


def _check(plan: SweepPlan) -> None:
    """Refuse a sweep if all its cells are invalid; otherwise invalid cells fail alone."""
    _, cells = _axes(plan)
    base = {key: value for key, value in plan.base.items() if key != "resume"}
    errors = []
    for cell in cells:
        try:
            cell.config(base)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == len(cells):
        raise errors[0]


def _resume(folder: Path) -> tuple[Path, SweepPlan]:
    try:
        values = json.loads((folder / PLAN_FILE).read_text())
        return folder.resolve(), SweepPlan(**values)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{folder}: no sweep to resume; {PLAN_FILE} expected in it") from error


def _axes(plan: SweepPlan) -> "tuple[Mapping[str, list[Value]], list[Cell]]":
    from dandelion.sweep.grid import axes_of, cells_of
    from dandelion.sweep.search import ranges_of

    axes = axes_of(plan.grid)
    if twice := axes.keys() & {each.key for each in ranges_of(plan.search)}:
        raise ConfigError(f"{sorted(twice)}: both in --grid and in --search")
    return axes, cells_of(axes)


def _source(folder: Path, plan: SweepPlan) -> "tuple[CellSource, list[Cell], list[str]]":
    from dandelion.sweep.runner import ListedCells
    from dandelion.sweep.search import SearchedCells, ranges_of

    axes, cells = _axes(plan)
    if not plan.search:
        return ListedCells(cells), cells, list(axes)
    ranges = ranges_of(plan.search)
    seed = int(str(plan.base.get("seed", Config().training.seed)))
    source = SearchedCells(folder, cells, ranges, plan.trials, seed)
    return source, cells, [*axes, *(each.key for each in ranges)]
