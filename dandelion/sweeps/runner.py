"""Runs cells side by side: each in its own process, on cores or a GPU of its own, resumable."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dandelion.engines.flower_simulation import ROOT
from dandelion.engines.process_tree import end_session, end_with_parent
from dandelion.sweeps.cells import CellFiles
from dandelion.sweeps.grid import Cell
from server.ledger.run_folder import LEDGER
from shared.base.errors import ConfigError
from shared.base.options import Value
from shared.config.schema import to_toml

LOOK_S = 0.3  # between two looks at the running processes
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


@dataclass(frozen=True)
class Slot:
    """Cores, and perhaps a GPU, for one run at a time."""

    number: int
    cores: tuple[int, ...]
    gpu: str = ""  # empty: none

    def settings(self) -> dict[str, Value]:
        """The settings of a run in this slot; the user's own settings win over them."""
        device: dict[str, Value] = {"device": "cuda"} if self.gpu else {}
        return {"threads": len(self.cores), **device}

    def environment(self) -> dict[str, str]:
        """The variables of a run's process: numbers of threads, and which GPU it sees."""
        threads = dict.fromkeys(THREAD_VARIABLES, str(len(self.cores)))
        return threads | ({"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu else {})


def make_slots(
    parallel: int, gpus: Sequence[str] = (), cores: Sequence[int] | None = None
) -> list[Slot]:
    """Make ``parallel`` slots with equal shares of the cores that this process may use.

    If there are more slots than cores, some share a core. GPUs are assigned in turn.

    Raises:
        ConfigError: ``parallel`` is below 1.
    """
    if parallel < 1:
        raise ConfigError(f"--parallel: at least 1 expected, got {parallel}")
    all_ = sorted(os.sched_getaffinity(0)) if cores is None else list(cores)
    share = max(1, len(all_) // parallel)
    return [
        Slot(
            number,
            tuple(all_[(number * share + k) % len(all_)] for k in range(share)),
            gpus[number % len(gpus)] if gpus else "",
        )
        for number in range(parallel)
    ]


class CellSource(Protocol):
    """Gives out cells one by one, and learns of each that has ended."""

    def next(self) -> Cell | None:
        """The next cell; None if there is none left, or none until others are done."""

    def find_prune_reason(self, cell: Cell) -> str:
        """Say why a running cell should be stopped; empty if it should go on."""

    def record_end(self, cell: Cell) -> None:
        """Note that a cell has ended."""


@dataclass
class ListedCells:
    """A source whose cells are all known in advance."""

    cells: Iterable[Cell]

    def __post_init__(self) -> None:
        self._left = iter(self.cells)

    def next(self) -> Cell | None:
        """One after the other."""
        return next(self._left, None)

    def find_prune_reason(self, cell: Cell) -> str:
        """Never stop a cell of a grid."""
        return ""

    def record_end(self, cell: Cell) -> None:
        """Do nothing: no other cell depends on it."""


@dataclass
class RunningCell:
    """A cell, its slot and its process."""

    cell: Cell
    slot: Slot
    process: "subprocess.Popen[bytes]"


class Runner:
    """Starts cells as slots become free; leaves cells that are done as they are.

    Args:
        folder: of the sweep; each cell gets a run folder in it.
        base: settings of all cells.
        slots: at most so many cells run at a time.
        show: gets the running cells and a line to print (empty: none), several times a second.
    """

    def __init__(
        self,
        folder: Path,
        base: Mapping[str, Value],
        slots: list[Slot],
        show: Callable[[list[RunningCell], str], None],
    ) -> None:
        self._folder, self._base, self._show = folder, base, show
        self._free, self.running = list(slots), list[RunningCell]()
        (folder / "logs").mkdir(parents=True, exist_ok=True)

    def run(self, source: CellSource) -> None:
        """Run all cells of a source; a cell that fails is marked, and the others go on.

        If an exception ends this, ^C too, the running cells are ended; they can be resumed.
        """
        try:
            while self._start(source) or self.running:
                self._look(source)
                self._show(self.running, "")
                time.sleep(LOOK_S)
        finally:
            for each in self.running:
                end_session(each.process)

    def _start(self, source: CellSource) -> bool:
        """Fill the free slots; return whether a cell was started."""
        started = False
        while self._free and (cell := source.next()) is not None:
            started = True
            files = CellFiles(self._folder, cell.name)
            if files.state() in ("done", "pruned"):
                self._show(self.running, f"{cell.name}: {files.state()} already")
                source.record_end(cell)
                continue
            slot = self._free.pop(0)
            try:
                process = self._process(cell, files, slot)
            except ConfigError as error:
                self._free.insert(0, slot)
                files.mark("failed", f"ConfigError: {error}")
                self._show(self.running, f"{cell.name}: ConfigError: {error}")
                source.record_end(cell)
                continue
            self.running.append(RunningCell(cell, slot, process))
        return started

    def _process(self, cell: Cell, files: CellFiles, slot: Slot) -> "subprocess.Popen[bytes]":
        base = {**slot.settings(), **self._base, "output-dir": str(self._folder)}
        config = cell.config(base)
        files.mark("new")
        command = [sys.executable, "-m", "dandelion", "run"]
        if (files.run / LEDGER).exists():
            command += ["--resume", str(files.run)]
        else:
            files.config.write_text(to_toml(config.to_run_config()))
            command += ["--config", str(files.config)]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with files.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                env=os.environ | slot.environment() | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509  (one system call, before exec)
            )
        if len(slot.cores) < (os.cpu_count() or 1):
            os.sched_setaffinity(process.pid, slot.cores)
        return process

    def _look(self, source: CellSource) -> None:
        for each in list(self.running):
            files = CellFiles(self._folder, each.cell.name)
            status = each.process.poll()
            if status is None and (reason := source.find_prune_reason(each.cell)):
                end_session(each.process)
                files.mark("pruned", reason)
            elif status is None:
                continue
            elif status:
                files.mark("failed", files.error())
            self.running.remove(each)
            self._free.append(each.slot)
            source.record_end(each.cell)
            words = files.state() + (f": {reason}" if (reason := files.reason()) else "")
            self._show(self.running, f"{each.cell.name}: {words}")
