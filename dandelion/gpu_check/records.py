"""What a step of the check leaves: rows, skips, profiles, curves and ledgers, line by line."""

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CheckRow:
    """One figure, and the goal that it is held to, if any."""

    what: str
    value: float
    unit: str = "×"  # of a ratio
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""
    is_statement: bool = False  # 1: it holds, 0: it does not

    @property
    def goal(self) -> str:
        """The goal in words; empty if there is none."""
        if self.is_statement:
            return "yes"
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return "" if self.at_least is None else f"≥ {self.at_least:g}"

    @property
    def verdict(self) -> str:
        """``yes`` or ``no``: whether the goal is met; empty if there is none."""
        if not self.goal:
            return ""
        high = self.at_most is None or self.value <= self.at_most
        low = self.at_least is None or self.value >= self.at_least
        return "yes" if high and low else "no"


@dataclass(frozen=True)
class StepTask:
    """What a step is to do, and the file to which it adds a line for each thing that it knows."""

    device: str
    tiny: bool
    file: Path
    deadline: float  # seconds of the monotonic clock

    @property
    def on_card(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.device.startswith("cuda")

    def row(self, what: str, value: float, unit: str = "×", **more: Any) -> CheckRow:  # noqa: ANN401
        """Record a figure; ``more``: the other fields of a ``CheckRow``."""
        row = CheckRow(what, value, unit, **more)
        self.record("row", asdict(row))
        return row

    def yes_or_no(self, what: str, holds: bool, note: str = "") -> None:
        """Record a statement that must hold."""
        self.row(what, float(holds), "", at_least=1.0, note=note, is_statement=True)

    def skip(self, what: str, reason: str) -> None:
        """Record that a part of the step is not done, and why."""
        self.record("skip", {"what": what, "reason": reason})

    def record(self, kind: str, value: Mapping[str, Any]) -> None:
        """Add one line to the file; it is there even if the process is killed right after."""
        with self.file.open("a") as file:
            file.write(json.dumps({kind: value}) + "\n")

    def seconds_left(self) -> float:
        """Seconds until the step is ended from outside."""
        return self.deadline - time.monotonic()

    def has_time_for(self, what: str, seconds: float) -> bool:
        """Tell whether so many seconds are left; if not, record the skip."""
        if (left := self.seconds_left()) >= seconds:
            return True
        self.skip(what, f"{left:.0f} s of the step's time are left, {seconds:.0f} s expected")
        return False


def read_records(file: Path) -> dict[str, list[dict[str, Any]]]:
    """All values of a step's file by kind; a line that a kill cut short is left out."""
    values: dict[str, list[dict[str, Any]]] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            pairs = json.loads(line).items()
        except ValueError:
            continue
        for kind, value in pairs:
            values.setdefault(kind, []).append(value)
    return values


def try_each(task: StepTask, parts: Mapping[str, Callable[[], None]]) -> None:
    """Do every part of a step; one that fails is recorded with its error."""
    for what, part in parts.items():
        try:
            part()
        except Exception as error:  # one part's fault must not cost the figures of the others
            lines = str(error).splitlines() or [""]
            task.record("failure", {"what": what, "error": f"{type(error).__name__}: {lines[0]}"})
            task.record("log", {"title": what, "text": traceback.format_exc()})
