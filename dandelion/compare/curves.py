"""Curves of loss against cost, read from ledgers, and which method was cheapest; per client."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.ledger.reader import LedgerReader
from server.ledger.run_folder import LEDGER

AXES = {  # attribute of a CurvePoint: its title
    "round": "rounds",
    "payload": "payload bytes per client",
    "message": "message bytes per client",
    "forwards": "forward passes per client (a backward counts two)",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class CurvePoint:
    """An evaluation, and the cost up to it: bytes, forward passes, seconds."""

    round: int
    loss: float
    payload: float
    message: float
    forwards: float
    seconds: float
    accuracy: float | None = None  # if the task has classes


def points_of(folder: Path) -> list[CurvePoint]:
    """The evaluations of a run in order, with their costs per client.

    Raises:
        LedgerError: the folder has no ledger, or a damaged one.
    """
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        clients = ledger.count_contributors() or 1
        return [
            CurvePoint(
                round_, loss, ours / clients, whole / clients, runs / clients, seconds, accuracy
            )
            for round_, loss, ours, whole, runs, seconds, accuracy in ledger.cost_points()
        ]


def find_first_at(points: Sequence[CurvePoint], loss: float) -> CurvePoint | None:
    """The first evaluation at ``loss`` or below, or None."""
    return next((point for point in points if point.loss <= loss), None)


def common_target(curves: Sequence[Sequence[CurvePoint]]) -> float:
    """The lowest loss that every method reached."""
    return max(min(point.loss for point in points) for points in curves)


def verdicts(rows: list[dict[str, Any]], loss: float) -> list[str]:
    """Say for each axis which method reached ``loss`` at the least cost, first-order ones first.

    Args:
        rows: the ``methods`` of a comparison.
        loss: the target. Methods that never reached it are named last.
    """
    arrived = [row for row in rows if row["to_target"]]
    best: list[tuple[bool, str]] = []
    for axis, title in AXES.items() if arrived else []:
        row = min(arrived, key=lambda each: (each["to_target"][axis], each["name"]))
        cost = f"{row['to_target'][axis]:,.4g}"
        text = f"fewest {title} to a loss of {loss:.3f}: {row['name']} ({cost})"
        best.append((row["first_order"], text))
    texts = [text for _, text in sorted(best, key=lambda pair: not pair[0])]
    late = [row["name"] for row in rows if not row["to_target"]]
    return texts + [f"{name} never reached a loss of {loss:.3f}" for name in late]
