"""A run's state in one line, for logs and terminals."""

import logging
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes a second, and ``--help`` needs none of it
    from server.reporting.report import Report

PREFIX = "dandelion: "
EVERY_S = 5.0


def size_text(count: float) -> str:
    """Bytes for people: 812 B, 3.4 kB, 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def state_text(report: "Report", round_: int) -> str:
    """Losses and bytes of all sites so far, in one line."""
    totals, evaluations = report.totals(), report.evaluations()
    loss = report.ledger.rows("SELECT loss FROM metrics WHERE round = ?", (round_,))
    parts = [f"loss {loss[0][0]:.3f}"] if loss else []
    parts += [f"held out {evaluations[-1][1]:.3f}"] if evaluations else []
    scores = report.scores().get("accuracy")
    parts += [f"accuracy {scores[-1][1]:.1%}"] if scores else []
    parts += [f"up {size_text(totals.bytes_up)}", f"down {size_text(totals.bytes_down)}"]
    return "  ".join(parts)


class LineLog:
    """Logs the state now and then; what ``flwr run --stream`` shows of a run."""

    def __init__(self) -> None:
        self._log = logging.getLogger("dandelion")
        self._log.setLevel(logging.INFO)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(PREFIX + "%(message)s"))
        self._log.addHandler(handler)
        self._log.propagate = False
        self._said = 0.0

    def __call__(self, report: "Report", round_: int) -> None:
        """Log the state after ``round_``, the last in any case."""
        rounds, now = report.config.num_rounds, time.monotonic()
        if round_ >= rounds or now - self._said >= EVERY_S:
            self._log.info("round %d/%d  %s", round_, rounds, state_text(report, round_))
            self._said = now
