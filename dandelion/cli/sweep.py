"""``dandelion sweep``: many runs over a grid of settings, side by side, resumable."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from shared.base.errors import ConfigError
from shared.base.options import Value
from shared.config.schema import Config, flat

if TYPE_CHECKING:  # the runner needs torch, which takes a second
    from dandelion.sweep.cells import Outcome
    from dandelion.sweep.grid import Cell
    from dandelion.sweep.runner import Running, Source

console = Console()
FILE = "sweep.json"
CANCELLED = 130  # status after ^C
TRIALS = 20


@dataclass(frozen=True)
class Plan:
    """What a sweep is; ``sweep.json`` in its folder."""

    grid: list[str]
    search: list[str]
    trials: int
    base: dict[str, Value]  # settings of all cells


def sweep(  # noqa: PLR0913, PLR0917  (options of a command)
    grid: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE,…", help="An axis; repeatable.")
    ] = None,
    search: Annotated[
        list[str] | None, typer.Option(metavar="KEY=LOW..HIGH[:log]", help="Sought by Optuna.")
    ] = None,
    trials: Annotated[int, typer.Option(help=f"Of each cell, with --search; 0: {TRIALS}.")] = 0,
    parallel: Annotated[
        int, typer.Option(help="Runs at a time; 0: one, or one for each of --gpus.")
    ] = 0,
    gpus: Annotated[str, typer.Option(help="Dealt to the runs in turn: 0,1.")] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of all cells.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings of all.")] = None,
    name: Annotated[str, typer.Option(help="Name of the folder.")] = "",
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the sweep in this folder.")
    ] = None,
) -> None:
    """Train every combination of the listed values; compare what they came to.

    Status 1 where a cell failed.
    """
    from dandelion.sweep.resources import places_of
    from dandelion.sweep.runner import Runner

    if resume and (grid or search or trials or settings or config or name):
        raise ConfigError("--resume takes a sweep as it was begun: only --parallel and --gpus go")
    if trials and not search:
        raise ConfigError(f"--trials {trials} without --search: a grid has one run for each cell")
    folder, plan = (
        _resumed(resume)
        if resume
        else _begun(
            Plan(grid or [], search or [], trials or TRIALS, _base(config, settings or [])), name
        )
    )
    source, cells, keys = _source(folder, plan)
    cards = [gpu.strip() for gpu in gpus.split(",") if gpu.strip()]
    places = places_of(parallel or len(cards) or 1, cards)
    with _Shown(folder, len(cells) * (plan.trials if plan.search else 1)) as shown:
        try:
            Runner(folder, plan.base, places, shown).run(source)
        except KeyboardInterrupt:
            say(f"stopped; go on with: dandelion sweep --resume {folder}")
            raise typer.Exit(CANCELLED) from None
        finally:
            begun = getattr(source, "begun", cells)
            outcomes = report(folder, begun, keys)
    if any(outcome.state == "failed" for outcome in outcomes):
        raise typer.Exit(1)


def report(folder: Path, cells: Sequence["Cell"], keys: Sequence[str]) -> "list[Outcome]":
    """Write CSV, summary and pictures of a sweep as it stands, and say where they are."""
    from dandelion.sweep.cells import Files, Outcome
    from dandelion.sweep.pictures import draw
    from dandelion.sweep.table import summary, write_csv, write_summary

    outcomes = [Outcome.of(Files(folder, cell.name), dict(cell.settings)) for cell in cells]
    write_csv(outcomes, keys, folder / "sweep.csv")
    text = summary(outcomes, keys, f"dandelion sweep --resume {folder}")
    file = write_summary(text, folder)
    say(text.rstrip())
    for path in (folder / "sweep.csv", file, *draw(outcomes, keys, folder)):
        say(str(path))
    return outcomes


def say(line: str) -> None:
    """Print a line as it is, however long."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


class _Shown:
    """A bar for all cells, and one for each that runs; lines where there is no terminal."""

    def __init__(self, folder: Path, total: int) -> None:
        self._folder = folder
        text = TextColumn("{task.description}", markup=False)
        self._progress = Progress(
            BarColumn(bar_width=20), text, console=console, disable=not console.is_terminal
        )
        self._all = self._progress.add_task("cells", total=total)
        self._tasks: dict[str, object] = {}

    def __enter__(self) -> "_Shown":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, running: "list[Running]", line: str) -> None:
        from dandelion.sweep.cells import Files

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
            round_, loss, _ = Files(self._folder, name).progress()
            text = f"{name}  round {round_}" + ("" if loss is None else f"  loss {loss:.3f}")
            self._progress.update(self._tasks[name], description=text)  # type: ignore[arg-type]


def _base(file: Path | None, pairs: Sequence[str]) -> dict[str, Value]:
    from dandelion.settings.gather import read_pairs, read_toml

    given = flat(read_toml(file)) if file else {}  # values are checked with the cells
    return {"save-model": False, **cast("Mapping[str, Value]", given | read_pairs(pairs))}


def _begun(plan: Plan, name: str) -> tuple[Path, Plan]:
    from shared.replica.snapshot import write_atomically

    if not plan.grid and not plan.search:
        raise ConfigError("--grid key=value,value,… or --search key=low..high expected")
    _check(plan)
    parent = str(plan.base.pop("output-dir", "runs"))
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = Path(parent, name or f"sweep-{stamp}").resolve()
    if folder.exists():
        raise ConfigError(f"{folder}: there already; --resume it, or choose another --name")
    write_atomically(folder / FILE, json.dumps(asdict(plan), indent=1).encode())
    return folder, plan


def _check(plan: Plan) -> None:
    """Refuse a sweep of which no cell can work; where some can, the others fail alone."""
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


def _resumed(folder: Path) -> tuple[Path, Plan]:
    try:
        values = json.loads((folder / FILE).read_text())
        return folder.resolve(), Plan(**values)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{folder}: no sweep to resume; {FILE} expected in it") from error


def _axes(plan: Plan) -> "tuple[Mapping[str, list[Value]], list[Cell]]":
    from dandelion.sweep.grid import axes_of, cells_of
    from dandelion.sweep.search import ranges_of

    axes = axes_of(plan.grid)
    if twice := axes.keys() & {each.key for each in ranges_of(plan.search)}:
        raise ConfigError(f"{sorted(twice)}: both in --grid and in --search")
    return axes, cells_of(axes)


def _source(folder: Path, plan: Plan) -> "tuple[Source, list[Cell], list[str]]":
    from dandelion.sweep.runner import Listed
    from dandelion.sweep.search import Searched, ranges_of

    axes, cells = _axes(plan)
    if not plan.search:
        return Listed(cells), cells, list(axes)
    ranges = ranges_of(plan.search)
    seed = int(str(plan.base.get("seed", Config().seed)))
    source = Searched(folder, cells, ranges, plan.trials, seed)
    return source, cells, [*axes, *(each.key for each in ranges)]
