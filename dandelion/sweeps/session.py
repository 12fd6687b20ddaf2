"""A sweep from its plan to its files: runs the cells, shows how far they are, and reports."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from dandelion.sweeps.cells import CellFiles, CellResult
from dandelion.sweeps.pictures import draw
from dandelion.sweeps.plan import SweepPlan, source_of
from dandelion.sweeps.runner import Runner, RunningCell, make_slots
from dandelion.sweeps.table import summary, write_csv, write_summary
from shared.base.text import LINES, escape_text, quote_command

CSV_FILE = "sweep.csv"


@dataclass(frozen=True)
class SweepReport:
    """What the cells of a sweep have reached so far, and the files that say it."""

    results: list[CellResult]
    summary: str
    files: list[Path]


class SweepSession:
    """A sweep that is run in this process; every cell trains in a process of its own.

    Args:
        folder: of the sweep.
        plan: of it.
    """

    def __init__(self, folder: Path, plan: SweepPlan) -> None:
        self._folder, self._plan = folder, plan
        self._source, self._cells, self._keys = source_of(folder, plan)

    def run(
        self,
        parallel: int,
        cards: list[str],
        show: Callable[[list[RunningCell], str], None],
    ) -> None:
        """Train the cells that are not done.

        Args:
            parallel: runs at a time; 0: one for each card, or one.
            cards: GPUs that are assigned to runs in turn.
            show: gets the running cells and a line to print, several times a second.
        """
        slots = make_slots(parallel or len(cards) or 1, cards)
        Runner(self._folder, self._plan.base, slots, show).run(self._source)

    def report(self) -> SweepReport:
        """Write CSV, summary and pictures of the sweep so far."""
        cells = getattr(self._source, "begun", self._cells)
        results = [
            CellResult.of(CellFiles(self._folder, cell.name), dict(cell.settings)) for cell in cells
        ]
        table = self._folder / CSV_FILE
        write_csv(results, self._keys, table)
        resume = quote_command("dandelion", "sweep", "--resume", self._folder)
        text = summary(results, self._keys, resume)
        file = write_summary(text, self._folder)
        return SweepReport(results, text, [table, file, *draw(results, self._keys, self._folder)])


class SweepProgress:
    """A bar for all cells and one for each running cell; without a terminal, plain lines."""

    def __init__(self, console: Console, folder: Path, total: int) -> None:
        self._console, self._folder = console, folder
        text = TextColumn("{task.description}", markup=False)
        self._progress = Progress(
            BarColumn(bar_width=20), text, console=console, disable=not console.is_terminal
        )
        self._all = self._progress.add_task("cells", total=total)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "SweepProgress":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, running: list[RunningCell], line: str) -> None:
        """Show the running cells, and print a line if there is one."""
        if line:
            text = escape_text(line, LINES)
            self._console.print(text, soft_wrap=True, highlight=False, markup=False)
            self._progress.advance(self._all)
        if not self._console.is_terminal:
            return
        for name in self._tasks.keys() - {each.cell.name for each in running}:
            self._progress.remove_task(self._tasks.pop(name))
        for each in running:
            name = each.cell.name
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, total=None)
            round_, loss, _ = CellFiles(self._folder, name).progress()
            text = f"{name}  round {round_}" + ("" if loss is None else f"  loss {loss:.3f}")
            self._progress.update(self._tasks[name], description=text)
