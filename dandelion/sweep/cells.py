"""A cell's files: how far its run is, what it came to, and the error where it failed."""

import csv
import json
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from server.ledger.reader import LedgerReader
from server.ledger.run_folder import LEDGER

State = Literal["new", "interrupted", "done", "failed", "pruned"]
NORM_ROUNDS = 10  # the newest, whose mean gradient norm is in the table
MARKS: tuple[State, ...] = ("failed", "pruned")  # files beside the log, with a reason in them


@dataclass(frozen=True)
class Files:
    """The folder of a sweep, as one cell sees it."""

    folder: Path
    name: str

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / self.name

    @property
    def log(self) -> Path:
        """What the run's process said."""
        return self.folder / "logs" / f"{self.name}.log"

    @property
    def config(self) -> Path:
        """The run's settings, as they were handed over."""
        return self.folder / "logs" / f"{self.name}.toml"

    def mark(self, state: State, reason: str = "") -> None:
        """Remember that the cell ended otherwise than done; ``new`` forgets it."""
        for each in MARKS:
            self._mark(each).unlink(missing_ok=True)
        if state in MARKS:
            self._mark(state).write_text(reason)

    def state(self) -> State:
        """How far the cell is, as its files say."""
        for state in MARKS:
            if self._mark(state).exists():
                return state
        if (self.run / "summary.json").exists():
            return "done"
        return "interrupted" if (self.run / LEDGER).exists() else "new"

    def reason(self) -> str:
        """Why it failed or was pruned."""
        found = [self._mark(state) for state in MARKS if self._mark(state).exists()]
        return found[0].read_text() if found else ""

    def error(self) -> str:
        """The line of the log that names what went wrong."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        named = [line for line in lines if "Error: " in line.partition(" ")[0] + " "]
        return (named or lines or ["ended without a word"])[-1]

    def progress(self) -> tuple[int, float | None, list[tuple[int, float]]]:
        """Round, the sites' loss in it, and the evaluations so far, from the run's own log."""
        round_, loss, evaluations = 0, None, list[tuple[int, float]]()
        with suppress(OSError, ValueError), (self.run / "metrics.csv").open() as file:
            for row in csv.DictReader(file):
                round_, loss = int(row["round"]), float(row["loss"])
                if row["evaluation loss"]:
                    evaluations.append((round_, float(row["evaluation loss"])))
        return round_, loss, evaluations

    def _mark(self, state: State) -> Path:
        return self.folder / "logs" / f"{self.name}.{state}"


@dataclass(frozen=True)
class Outcome:
    """What a cell came to: one row of the table, and its curves."""

    name: str
    settings: dict[str, Any]
    state: State
    error: str = ""
    rounds: int = 0
    first_loss: float | None = None
    final_loss: float | None = None
    best_loss: float | None = None
    gradient_norm: float | None = None  # mean of the last ten rounds
    forwards: float = 0.0  # these three: per client
    bytes_up: float = 0.0
    bytes_down: float = 0.0
    seconds: float = 0.0
    rewinds: int = 0
    digest: str = ""
    folder: Path = field(default=Path(), repr=False)

    @classmethod
    def of(cls, files: Files, settings: dict[str, Any]) -> "Outcome":
        """Read a cell's files, whatever state it is in."""
        state = files.state()
        if state in ("new", "failed") and not (files.run / LEDGER).exists():
            return cls(files.name, settings, state, files.reason(), folder=files.run)
        with closing(LedgerReader.open(files.run / LEDGER)) as ledger:
            losses = [loss for _, loss in ledger.evaluations()]
            forwards, up, down, seconds, clients = ledger.totals()
            rounds, rewinds = ledger.last_round, len(ledger.rewinds())
            norm, each = ledger.mean_gradient_norm(NORM_ROUNDS), clients or 1
        summary = files.run / "summary.json"
        digest = json.loads(summary.read_text())["digest"] if summary.exists() else ""
        return cls(
            files.name, settings, state, files.reason(), rounds,
            losses[0] if losses else None, losses[-1] if losses else None,
            min(losses, default=None), norm,
            forwards / each, up / each, down / each, seconds, rewinds, digest, files.run,
        )  # fmt: skip
