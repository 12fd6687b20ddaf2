"""Curves of loss against cost, read from ledgers, and which method was cheapest; per client."""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
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
MOST_RISE = 0.1  # of the whole fall, from one evaluation to the next


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


def smooth(points: Sequence[CurvePoint]) -> list[float]:
    """The losses (n,), each the median of itself and its neighbours; the first stays as it is.

    A dip in one evaluation alone does not count. Losses that fall steadily stay but the last, which
    is the mean of the last two.
    """
    losses = [point.loss for point in points]
    return losses[:1] + [median(losses[k - 1 : k + 2]) for k in range(1, len(losses))]


def find_first_at(points: Sequence[CurvePoint], loss: float) -> CurvePoint | None:
    """The first evaluation at ``loss`` or below, smoothed, or None."""
    pairs = zip(points, smooth(points), strict=True)
    return next((point for point, value in pairs if value <= loss), None)


def common_target(curves: Sequence[Sequence[CurvePoint]]) -> float:
    """The lowest smoothed loss that every method reached."""
    return max(min(smooth(points)) for points in curves)


def is_settled(points: Sequence[CurvePoint]) -> bool:
    """Whether the loss fell, and did not rise in the second half by MOST_RISE of that."""
    losses = [point.loss for point in points]
    fall = losses[0] - min(losses)
    later = losses[len(losses) // 2 :]
    rise = max((after - before for before, after in pairwise(later)), default=0.0)
    return fall > 0 and math.isfinite(rise) and rise <= MOST_RISE * fall


def best_run(curves: Sequence[Sequence[CurvePoint]]) -> int:
    """Index of the curve that settled and ends lowest; if none settled, of the one that ends so."""
    ends = [smooth(points)[-1] for points in curves]
    keys = [
        (not is_settled(points), end if math.isfinite(end) else math.inf)
        for points, end in zip(curves, ends, strict=True)
    ]
    return keys.index(min(keys))


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
    wild = [row["name"] for row in rows if not row.get("settled", True)]
    return [
        *texts,
        *(f"{name} never reached a loss of {loss:.3f}" for name in late),
        *(f"{name} did not settle: its loss still rose and fell at its best rate" for name in wild),
    ]
