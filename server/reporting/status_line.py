"""The state of a run in one line, for logs and terminals."""

import logging
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes a second, and ``--help`` needs none of it
    from server.reporting.report import Report

PREFIX = "dandelion: "
EVERY_S = 5.0


def size_text(count: float) -> str:
    """A number of bytes with its unit: 812 B, 3.4 kB, 1.2 MB; powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def state_text(report: "Report", round_: int) -> str:
    """What a run has reached and sent so far, in one line.

    For example: ``loss 5.214  held out 5.198  up 1.2 kB  down 3.4 kB``. The loss is the sites' in
    round ``round_``; the held-out loss and the accuracy are those of the last evaluation; the bytes
    are the payload of all sites and rounds.
    """
    ledger = report.ledger
    totals, evaluations, metrics = ledger.totals(), ledger.evaluations(), ledger.metrics_of(round_)
    parts = [f"loss {metrics.loss:.3f}"] if metrics and metrics.loss is not None else []
    parts += [f"held out {evaluations[-1].loss:.3f}"] if evaluations else []
    accuracies = ledger.scores().get("accuracy")
    parts += [f"accuracy {accuracies[-1][1]:.1%}"] if accuracies else []
    parts += [f"up {size_text(totals.bytes_up)}", f"down {size_text(totals.bytes_down)}"]
    return "  ".join(parts)


class LineLog:
    """Logs the state of a run at most every few seconds; ``flwr run --stream`` shows the lines."""

    def __init__(self) -> None:
        self._log = logging.getLogger("dandelion")
        self._log.setLevel(logging.INFO)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(PREFIX + "%(message)s"))
        self._log.addHandler(handler)
        self._log.propagate = False
        self._last_line_at = 0.0

    def __call__(self, report: "Report", round_: int) -> None:
        """Log the state after a round, if the last line is ``EVERY_S`` old or the run is over."""
        rounds, now = report.config.training.rounds, time.monotonic()
        if round_ >= rounds or now - self._last_line_at >= EVERY_S:
            self._log.info("round %d/%d  %s", round_, rounds, state_text(report, round_))
            self._last_line_at = now
