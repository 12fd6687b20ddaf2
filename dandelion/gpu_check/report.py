"""What the check leaves: results.json, table.md and log.txt, whole after every step."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dandelion.gpu_check.records import CheckRow
from shared.base.files import write_atomically

Records = Mapping[str, list[dict[str, Any]]]
RECORDINGS = "recordings.json"  # ledgers that were made on the device


@dataclass
class StepOutcome:
    """How a step ended, and all that it recorded until then."""

    name: str
    title: str
    status: str  # done, skipped, failed or cut off
    reason: str = ""
    seconds: float = 0.0
    limit: float = 0.0
    records: Records = field(default_factory=dict)
    output: str = ""  # of its process, the end

    @property
    def rows(self) -> list[CheckRow]:
        """The figures."""
        return [CheckRow(**row) for row in self.records.get("row", [])]

    @property
    def is_sound(self) -> bool:
        """Whether nothing failed and every statement holds; goals of speed do not count."""
        statements = all(row.value for row in self.rows if row.is_statement)
        ended = self.status in ("done", "skipped")
        return ended and statements and not self.records.get("failure")


@dataclass
class CardReport:
    """The outcomes so far; ``write`` makes the files anew."""

    folder: Path
    version: str
    started: str  # ISO 8601, UTC
    minutes: float
    tiny: bool
    outcomes: list[StepOutcome] = field(default_factory=list)

    @property
    def machine(self) -> dict[str, Any]:
        """The device and the versions, as the first step that knew them recorded them."""
        rows = (row for each in self.outcomes for row in each.records.get("machine", []))
        return next(rows, {})

    def write(self) -> None:
        """Write the three files, and the ledgers that were made on the device, atomically."""
        about = {"version": self.version, "started": self.started, "minutes": self.minutes,
                 "tiny": self.tiny, "machine": self.machine}  # fmt: skip
        results = {**about, "steps": [asdict(each) for each in self.outcomes]}
        self._write("results.json", json.dumps(results, indent=1))
        self._write("table.md", "\n".join(self._table()))
        self._write("log.txt", "\n".join(self._log()))
        made = [r for each in self.outcomes for r in each.records.get("recording", [])]
        if made:
            self._write(RECORDINGS, json.dumps(made, indent=1))

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.folder / name, f"{text}\n".encode())

    def _table(self) -> Iterator[str]:
        machine = self.machine
        yield f"# {machine.get('card', machine.get('device', 'no device'))}, {self.started[:10]}"
        yield ""
        size = ", small sizes that try the command and say nothing of speed" * self.tiny
        yield f"Dandelion {self.version}, `dandelion gpu-check`{size}. Machine: " + ", ".join(
            f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
            for name, value in machine.items()
        ) + "."  # fmt: skip
        for outcome in self.outcomes:
            yield from _section(outcome)

    def _log(self) -> Iterator[str]:
        for each in self.outcomes:
            yield f"== {each.name}: {each.status}, {each.seconds:.1f} of {each.limit:.0f} s"
            yield from (f"{log['title']}\n{log['text']}" for log in each.records.get("log", []))
            if each.output:
                yield each.output


def _section(outcome: StepOutcome) -> Iterator[str]:
    """A step's heading, its rows, what was skipped, and its profiles."""
    reason = f": {outcome.reason}" if outcome.reason else ""
    yield from ("", f"## {outcome.title}", "")
    yield f"{outcome.status.capitalize()}{reason} ({outcome.seconds:.0f} s)."
    if outcome.rows:
        yield from ("", "| what | figure | goal | met | note |", "|---|---|---|---|---|")
    for row in outcome.rows:
        cells = (row.what, figure(row), row.goal, row.verdict, row.note)
        yield "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
    skips, failures = (outcome.records.get(kind, []) for kind in ("skip", "failure"))
    if skips or failures:
        yield ""
    yield from (f"- not done: {each['what']}: {each['reason']}" for each in skips)
    yield from (f"- failed: {each['what']}: {each['error']}" for each in failures)
    if outcome.status == "cut off" and (steps := outcome.records.get("progress")):
        yield from ("", f"It came to {steps[-1]['what']}, with {steps[-1]['left']:.0f} s left.")
    for each in outcome.records.get("profile", []):
        yield from (
            "",
            f"{each['title']}: {each['ms']:g} ms, host {each['host ms']:g} ms",
            "",
            "```",
        )
        yield from (f"{k['ms']:10.3f} ms {k['calls']:6d} × {k['name']}" for k in each["kernels"])
        yield "```"


def figure(row: CheckRow) -> str:
    """A row's value with its unit; ``yes`` or ``no`` of a statement."""
    if row.is_statement:
        return "yes" if row.value else "no"
    return f"{row.value:,.4g} {row.unit}".strip()
