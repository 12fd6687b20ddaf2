"""Cells are run side by side, each in a process of its own at its own place, and can be cut off."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import dandelion
from dandelion.engines.flower_simulation import end_session
from dandelion.sweep.cells import Files
from dandelion.sweep.grid import Cell
from dandelion.sweep.resources import Place
from server.ledger.run_folder import LEDGER
from shared.base.errors import ConfigError
from shared.base.options import Value
from shared.config.schema import to_toml

LOOK_S = 0.3


class Source(Protocol):
    """Where cells come from, and who hears what became of them."""

    def next(self) -> Cell | None:
        """The next cell; None where there is none, or none until others are done."""

    def hopeless(self, cell: Cell) -> str:
        """Why a cell that is running should be given up; empty: it should not."""

    def told(self, cell: Cell) -> None:
        """Take notice that a cell is over."""


@dataclass
class Listed:
    """Cells that are all known before."""

    cells: Iterable[Cell]

    def __post_init__(self) -> None:
        self._left = iter(self.cells)

    def next(self) -> Cell | None:
        """One after the other."""
        return next(self._left, None)

    def hopeless(self, cell: Cell) -> str:
        """No cell of a grid is given up."""
        return ""

    def told(self, cell: Cell) -> None:
        """Nothing depends on it."""


@dataclass
class Running:
    """A cell at work."""

    cell: Cell
    place: Place
    process: "subprocess.Popen[bytes]"


class Runner:
    """Starts cells at places as they become free; what is done already is left as it is."""

    def __init__(
        self,
        folder: Path,
        base: Mapping[str, Value],
        places: list[Place],
        shown: Callable[[list[Running], str], None],
    ) -> None:
        self._folder, self._base, self._shown = folder, base, shown
        self._free, self.running = list(places), list[Running]()
        (folder / "logs").mkdir(parents=True, exist_ok=True)

    def run(self, source: Source) -> None:
        """Run all cells of a source; a cell that fails is marked and the others go on.

        When this is left by an exception, ^C too, what runs is ended so that it can be resumed.
        """
        try:
            while self._start(source) or self.running:
                self._look(source)
                self._shown(self.running, "")
                time.sleep(LOOK_S)
        finally:
            for each in self.running:
                end_session(each.process)

    def _start(self, source: Source) -> bool:
        """Fill the free places; whether anything was begun."""
        begun = False
        while self._free and (cell := source.next()) is not None:
            begun = True
            files = Files(self._folder, cell.name)
            if files.state() in ("done", "pruned"):
                self._shown(self.running, f"{cell.name}: {files.state()} already")
                source.told(cell)
                continue
            place = self._free.pop(0)
            try:
                process = self._process(cell, files, place)
            except ConfigError as error:
                self._free.insert(0, place)
                files.mark("failed", f"ConfigError: {error}")
                self._shown(self.running, f"{cell.name}: ConfigError: {error}")
                source.told(cell)
                continue
            self.running.append(Running(cell, place, process))
        return begun

    def _process(self, cell: Cell, files: Files, place: Place) -> "subprocess.Popen[bytes]":
        base = {**place.settings(), **self._base, "output-dir": str(self._folder)}
        config = cell.config(base)
        files.mark("new")
        command = [sys.executable, "-m", "dandelion", "run"]
        if (files.run / LEDGER).exists():
            command += ["--resume", str(files.run)]
        else:
            files.config.write_text(to_toml(config.to_run_config()))
            command += ["--config", str(files.config)]
        paths = [str(Path(dandelion.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        path = os.pathsep.join(filter(None, paths))
        with files.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                env=os.environ | place.environment() | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if len(place.cores) < (os.cpu_count() or 1):
            os.sched_setaffinity(process.pid, place.cores)
        return process

    def _look(self, source: Source) -> None:
        for each in list(self.running):
            files = Files(self._folder, each.cell.name)
            status = each.process.poll()
            if status is None and (reason := source.hopeless(each.cell)):
                end_session(each.process)
                files.mark("pruned", reason)
            elif status is None:
                continue
            elif status:
                files.mark("failed", files.error())
            self.running.remove(each)
            self._free.append(each.place)
            source.told(each.cell)
            words = files.state() + (f": {reason}" if (reason := files.reason()) else "")
            self._shown(self.running, f"{each.cell.name}: {words}")
