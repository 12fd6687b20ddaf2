"""The picture of a run: loss against rounds and against bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from server.ledger.ledger import Ledger

SITES, HELD_OUT, INK = "#8093ab", "#c8374a", "#333a44"
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "text.parse_math": False,  # a run's name may hold dollars
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b7bec8",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7ec",
    "axes.axisbelow": True,
}
ACCURACY = """
SELECT value FROM scores WHERE site = '' AND name = 'accuracy' AND round <= ? ORDER BY round"""
SMOOTHED_FROM = 20  # rounds: a shorter curve is drawn as it is


@dataclass(frozen=True)
class Curves:
    """What is drawn: both losses, and what the rounds cost."""

    rounds: Sequence[int]  # committed
    sites: Sequence[float]  # loss of each
    evaluated: Sequence[int]  # rounds, 0 is the untrained model
    held_out: Sequence[float]  # loss of each
    spent: Sequence[float]  # payload bytes per client, both ways, after 0, 1, 2 … rounds
    message_share: float  # bytes as serialised to bytes of payload
    accuracy: Sequence[float] = ()  # held out, of each evaluation; empty without classes

    @classmethod
    def of(cls, ledger: Ledger) -> "Curves":
        """Read them; a run that goes on meanwhile may have evaluated a round more."""
        rows = ledger.rows(
            "SELECT round, loss, bytes_up + bytes_down, clients FROM metrics ORDER BY round"
        )
        evaluations = ledger.rows(
            "SELECT round, loss FROM evaluations WHERE round <= ? ORDER BY round", (len(rows),)
        )
        payload, message = ledger.rows("SELECT sum(payload), sum(message) FROM traffic")[0]
        most = max((row[3] for row in rows), default=0) or 1  # a rewind has none of its own
        return cls(
            [row[0] for row in rows],
            [row[1] for row in rows],
            [row[0] for row in evaluations],
            [row[1] for row in evaluations],
            list(accumulate((row[2] / (row[3] or most) for row in rows), initial=0.0)),
            message / payload if payload else 1.0,
            [value for (value,) in ledger.rows(ACCURACY, (len(rows),))],
        )

    @property
    def headline(self) -> str:
        """What the run reached, and at what cost."""
        unit, size = unit_of(self.spent[-1])
        payload, message = self.spent[-1] / size, self.spent[-1] * self.message_share / size
        cost = (
            f"{len(self.rounds)} rounds, {payload:,.3g} {unit} of payload per client "
            f"({message:,.3g} {unit} as messages)"
        )
        if not self.held_out:
            return cost
        right = ""
        if self.accuracy:
            right = f", accuracy {self.accuracy[0]:.1%} → {self.accuracy[-1]:.1%}"
        return f"held-out loss {self.held_out[0]:.3f} → {self.held_out[-1]:.3f}{right} in {cost}"


def draw_losses(ledger: Ledger, path: Path) -> None:
    """Draw the sites' loss of every round and the evaluations into a PNG at ``path``."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = Curves.of(ledger)
    unit, size = unit_of(curves.spent[-1])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        _draw(left, curves, list(range(len(curves.spent))))
        _draw(right, curves, [spent / size for spent in curves.spent])
        of = "example" if curves.accuracy else "token"
        left.set(xlabel="round", ylabel=f"loss (nats per {of})")
        right.set(xlabel=f"payload per client, up and down ({unit})")
        left.legend(frameon=False, loc="upper right")
        figure.suptitle(f"{path.parent.name}\n{curves.headline}", fontsize=12)
        figure.savefig(path, dpi=140)


def unit_of(count: float) -> tuple[str, float]:
    """The unit in which so many bytes are a handy number, and its size."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return unit, size
    return "bytes", 1.0


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over a window of a tenth of the values around each; narrower towards both ends."""
    reach, sums = len(values) // 20, np.cumsum([0.0, *values])
    narrow = [min(reach, i, len(values) - 1 - i) for i in range(len(values))]
    return [float((sums[i + n + 1] - sums[i - n]) / (2 * n + 1)) for i, n in enumerate(narrow)]


def _draw(axes: Any, curves: Curves, at: Sequence[float]) -> None:  # noqa: ANN401
    """Draw both losses; round r stands at ``at[r]``."""
    places = [at[round_] for round_ in curves.rounds]
    if len(places) >= SMOOTHED_FROM:
        axes.plot(places, curves.sites, color=SITES, lw=0.8, alpha=0.45)
        axes.plot(places, smooth(curves.sites), color=SITES, lw=2, label="at the sites (smoothed)")
    else:
        axes.plot(places, curves.sites, color=SITES, lw=2, label="at the sites")
    evaluated = [at[round_] for round_ in curves.evaluated]
    line = {"lw": 2, "marker": "o", "ms": 4, "clip_on": False, "zorder": 3}
    axes.plot(evaluated, curves.held_out, color=HELD_OUT, label="held out", **line)
    axes.margins(x=0.02)
    axes.set_xlim(left=0)
