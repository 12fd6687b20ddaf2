"""The numbers of a run's rounds, read from its ledger: the same for every tracker."""

import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime

from server.ledger.reader import LedgerReader
from server.reporting.round_worth import worth_of_round
from server.tracking.tracker import TrackedPoint
from shared.config.schema import Config

OF_A_ROUND = (
    *("loss", "gradient norm", "learning rate", "clients"),
    *("bytes up", "bytes down", "forwards", "seconds"),
)


class LedgerPoints:
    """Reads the points of a run; each is read once, an evaluation that comes late by itself."""

    def __init__(self, ledger: LedgerReader, config: Config, after: int = -1) -> None:
        self._ledger, self._config = ledger, config
        self._round, self._evaluated = max(after, 0), after

    def read_new(self) -> list[TrackedPoint]:
        """The points since the last call, in order of their rounds."""
        values: dict[int, dict[str, float]] = defaultdict(dict)
        for round_, more in (*self._rounds(), *self._evaluations()):
            values[round_] |= more
        return [TrackedPoint(r, self._seconds_of(r), values[r]) for r in sorted(values)]

    def _rounds(self) -> Iterator[tuple[int, dict[str, float]]]:
        backs = {rewind.round: rewind.back_to for rewind in self._ledger.rewinds()}
        for metrics in self._ledger.metrics(self._round):
            numbers = {tag: getattr(metrics, tag.replace(" ", "_")) for tag in OF_A_ROUND}
            if (worth := worth_of_round(self._config, self._ledger, metrics.round)) is not None:
                numbers |= {"signal": worth.signal, "site noise": worth.noise}
            numbers["back to"] = backs.get(metrics.round)
            given = {f"round/{k}": float(v) for k, v in numbers.items() if v is not None}
            yield metrics.round, given
            self._round = metrics.round

    def _evaluations(self) -> Iterator[tuple[int, dict[str, float]]]:
        evaluations = self._ledger.evaluations(self._evaluated)
        if not evaluations:
            return
        scores = {name: dict(series) for name, series in self._ledger.scores().items()}
        for round_, loss in evaluations:
            if round_ > self._round:
                return  # its own metrics have not been read yet
            more = {f"held out/{n}": of[round_] for n, of in scores.items() if round_ in of}
            yield round_, {"held out/loss": loss, **more}
            self._evaluated = round_

    def _seconds_of(self, round_: int) -> float:
        metrics = self._ledger.metrics_of(max(round_, 1))
        if metrics is None:  # the base model of a run without a round
            return time.time()
        return datetime.fromisoformat(metrics.timestamp).timestamp()
