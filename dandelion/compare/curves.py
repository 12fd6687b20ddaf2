"""What a run reached and what that cost, read from its ledger; all costs are per client."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from server.ledger.reader import LedgerReader
from server.ledger.run_folder import LEDGER

AXES = {  # attribute of a point to what it is called
    "round": "rounds",
    "payload": "payload bytes per client",
    "message": "message bytes per client",
    "forwards": "forward passes per client (a backward counts two)",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class Point:
    """An evaluation, and what had been spent until then."""

    round: int
    loss: float
    payload: float
    message: float
    forwards: float
    seconds: float
    accuracy: float | None = None  # where the task has classes


def points_of(folder: Path) -> list[Point]:
    """The evaluations of a run in order, with their costs per client."""
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        clients = ledger.count_contributors() or 1
        return [
            Point(round_, loss, ours / clients, whole / clients, runs / clients, seconds, accuracy)
            for round_, loss, ours, whole, runs, seconds, accuracy in ledger.cost_points()
        ]


def reached(points: Sequence[Point], loss: float) -> Point | None:
    """The first evaluation that was at ``loss`` or below."""
    return next((point for point in points if point.loss <= loss), None)


def common_target(curves: Sequence[Sequence[Point]]) -> float:
    """The lowest loss that every method came to."""
    return max(min(point.loss for point in points) for points in curves)
