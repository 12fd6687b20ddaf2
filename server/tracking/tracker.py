"""What a tracker is: it is started with a run, gets the numbers of its rounds, and is finished."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shared.base.options import Value
from shared.base.registry import Registry


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run before the first of its numbers."""

    name: str  # of the run folder
    id: str  # 32 hexadecimal digits, the same when the run is resumed
    folder: Path  # a tracker's own files go into a folder or file of its name in here
    settings: Mapping[str, Value]


@dataclass(frozen=True)
class TrackedPoint:
    """The numbers of one round."""

    round: int  # 0: the untrained model; a rewind is a round too, so it always rises
    seconds: float  # since 1970, when the round was committed
    values: Mapping[str, float]  # as round/loss, held out/accuracy


class Tracker(Protocol):
    """Shows or stores the numbers of runs; may raise anything: that is a warning, and ends it."""

    def start(self, run: TrackedRun) -> int:
        """Begin with a run, or go on with it; return the last round that it has, or -1."""

    def log(self, point: TrackedPoint) -> None:
        """Take the numbers of a round; rounds come in order."""

    def finish(self) -> None:
        """Write what is left; the run has ended or was interrupted, and may be resumed."""


TRACKERS: Registry[Callable[[], Tracker]] = Registry("tracker", "server.tracking")
