"""Points of a curve: what was reached, and what a site had paid for it on every axis."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from math import inf, isfinite
from pathlib import Path
from statistics import median

from dandelion.comparisons.curves import points_of
from server.ledger.reader import LedgerReader
from server.ledger.run_folder import LEDGER

AXES = {  # attribute of a RacePoint: its title
    "evaluations": "evaluations per site (forward passes over a batch; a backward counts two)",
    "examples": "examples read per site, with repetitions",
    "seconds": "seconds, all sites one after the other",
    "payload_up": "payload bytes up per site",
    "payload": "payload bytes per site, both ways",
    "message": "message bytes per site, both ways",
}


@dataclass(frozen=True)
class RacePoint:
    """An evaluation on held-out examples, and the mean cost of a site up to it."""

    round: int
    evaluations: float
    examples: float
    seconds: float
    payload_up: float
    payload: float
    message: float
    loss: float
    accuracy: float | None = None


@dataclass(frozen=True)
class RaceCurve:
    """One run of one method on one problem."""

    method: str
    source: str
    rate: float | None  # None: nothing is searched
    seed: int
    points: Sequence[RacePoint]
    note: str = ""  # why it ended before its budget, if it did
    rewinds: int = 0  # of the divergence guard

    @property
    def final(self) -> float:
        """The held-out loss at the end; infinite if it diverged or has none."""
        if not self.points or not isfinite(self.points[-1].loss):
            return inf
        return self.points[-1].loss

    @property
    def accuracy(self) -> float | None:
        """The accuracy at the end, if there are classes."""
        return self.points[-1].accuracy if self.points else None

    def first_at(self, loss: float) -> RacePoint | None:
        """The first point at ``loss`` or below."""
        return next((point for point in self.points if point.loss <= loss), None)

    def first_with(self, accuracy: float) -> RacePoint | None:
        """The first point at ``accuracy`` or above."""
        return next((point for point in self.points if (point.accuracy or 0) >= accuracy), None)


def race_points(folder: Path, batch: int) -> list[RacePoint]:
    """The evaluations of a run; ``batch`` is the number of examples of one evaluation."""
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        sites = ledger.count_contributors() or 1
        rounds = ledger.round_summaries(1, ledger.last_round)
        up = [0, *accumulate(row.metrics.bytes_up for row in rounds)]
    return [
        RacePoint(
            round=point.round,
            evaluations=point.forwards,
            examples=point.forwards * batch,
            seconds=point.seconds,
            payload_up=up[point.round] / sites,
            payload=point.payload,
            message=point.message,
            loss=point.loss,
            accuracy=point.accuracy,
        )
        for point in points_of(folder)
    ]


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest of some values."""
    return median(values), min(values), max(values)
