"""What a sweep came to: a CSV of all cells, and a few lines about the best."""

import csv
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from dandelion.sweep.cells import Outcome
from shared.base.options import Value
from shared.replica.snapshot import write_atomically

NOT_COLUMNS = ("settings", "folder")


def write_csv(outcomes: Sequence[Outcome], keys: Sequence[str], path: Path) -> None:
    """One row for each cell: its name, what it varies, its state, losses and costs."""
    names = [f.name for f in fields(Outcome) if f.name not in NOT_COLUMNS]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["cell", *keys, *(name.replace("_", " ") for name in names[1:])])
        for each in outcomes:
            values = [getattr(each, name) for name in names[1:]]
            writer.writerow([each.name, *(each.settings.get(k, "") for k in keys), *values])


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Cells that are done and were evaluated, the lowest final loss first."""
    done = [o for o in outcomes if o.state == "done" and o.final_loss is not None]
    finite = [o for o in done if o.final_loss is not None and math.isfinite(o.final_loss)]
    return sorted(finite, key=lambda o: (o.final_loss, o.name))


def summary(outcomes: Sequence[Outcome], keys: Sequence[str], command: str) -> str:
    """The best cell, the best for each value of each axis, and who failed and why."""
    best = ranked(outcomes)
    states = [f"{sum(o.state == s for o in outcomes)} {s}" for s in _states(outcomes)]
    lines = [f"{len(outcomes)} cells: {', '.join(states)}"]
    lines += [f"best: {_line(best[0])}"] if best else ["no cell was evaluated"]
    for key in keys:
        lines += [f"by {key}:"] if best else []
        for value in dict.fromkeys(o.settings[key] for o in best):
            first = next(o for o in best if o.settings[key] == value)
            lines.append(f"  {_text(value)}: {_line(first)}")
    lines += [f"failed: {o.name}: {o.error}" for o in outcomes if o.state == "failed"]
    if any(o.state not in ("done", "pruned") for o in outcomes):
        lines.append(f"go on with: {command}")
    return "\n".join(lines) + "\n"


def write_summary(text: str, folder: Path) -> Path:
    """Put ``summary.txt`` into the folder of a sweep."""
    write_atomically(folder / "summary.txt", text.encode())
    return folder / "summary.txt"


def _states(outcomes: Sequence[Outcome]) -> list[str]:
    order = ("done", "pruned", "interrupted", "new", "failed")
    return [state for state in order if any(o.state == state for o in outcomes)]


def _line(outcome: Outcome) -> str:
    sent = outcome.bytes_up + outcome.bytes_down
    return (
        f"held-out loss {outcome.final_loss:.4f} (from {outcome.first_loss:.4f}) in "
        f"{outcome.rounds} rounds, {outcome.forwards:,.0f} forward passes and {sent:,.0f} payload "
        f"bytes per client, {outcome.seconds:.1f} s: {outcome.name}"
    )


def _text(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
