"""Results of a sweep as text: a CSV of all cells, and a short summary of the best."""

import csv
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from dandelion.sweeps.cells import CellResult
from shared.base.files import write_atomically
from shared.base.options import Value
from shared.base.text import spreadsheet_cell

NOT_COLUMNS = ("settings", "folder")


def write_csv(results: Sequence[CellResult], keys: Sequence[str], path: Path) -> None:
    """Write a row for each cell: its name, the settings that vary, its state, losses and costs."""
    names = [f.name for f in fields(CellResult) if f.name not in NOT_COLUMNS]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["cell", *keys, *(name.replace("_", " ") for name in names[1:])])
        for each in results:
            values = [getattr(each, name) for name in names[1:]]
            row = [each.name, *(each.settings.get(k, "") for k in keys), *values]
            writer.writerow([spreadsheet_cell(value) for value in row])


def rank(results: Sequence[CellResult]) -> list[CellResult]:
    """Sort the cells that are done and were evaluated; the lowest final loss comes first."""
    done = [r for r in results if r.state == "done" and r.final_loss is not None]
    finite = [r for r in done if r.final_loss is not None and math.isfinite(r.final_loss)]
    return sorted(finite, key=lambda r: (r.final_loss, r.name))


def summary(results: Sequence[CellResult], keys: Sequence[str], command: str) -> str:
    """The best cell, the best for each value of each axis, and the failed cells with reasons."""
    best = rank(results)
    states = [f"{sum(r.state == s for r in results)} {s}" for s in _states(results)]
    lines = [f"{len(results)} cells: {', '.join(states)}"]
    lines += [f"best: {_line(best[0])}"] if best else ["no cell was evaluated"]
    for key in keys:
        lines += [f"by {key}:"] if best else []
        for value in dict.fromkeys(r.settings[key] for r in best):
            first = next(r for r in best if r.settings[key] == value)
            lines.append(f"  {_text(value)}: {_line(first)}")
    lines += [f"failed: {r.name}: {r.error}" for r in results if r.state == "failed"]
    if any(r.state not in ("done", "pruned") for r in results):
        lines.append(f"continue with: {command}")
    return "\n".join(lines) + "\n"


def write_summary(text: str, folder: Path) -> Path:
    """Write ``summary.txt`` into the folder of a sweep; return its path."""
    write_atomically(folder / "summary.txt", text.encode())
    return folder / "summary.txt"


def _states(results: Sequence[CellResult]) -> list[str]:
    order = ("done", "pruned", "interrupted", "new", "failed")
    return [state for state in order if any(r.state == state for r in results)]


def _line(result: CellResult) -> str:
    sent = result.bytes_up + result.bytes_down
    return (
        f"held-out loss {result.final_loss:.4f} (from {result.first_loss:.4f}) in "
        f"{result.rounds} rounds, {result.forwards:,.0f} forward passes and {sent:,.0f} payload "
        f"bytes per client, {result.seconds:.1f} s: {result.name}"
    )


def _text(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
