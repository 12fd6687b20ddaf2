"""The loss plot of a run: loss against rounds and against bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from server.ledger.reader import LedgerReader
from server.ledger.run_folder import read_config
from shared.config.answer_section import CHOOSING, ESTIMATING
from shared.config.schema import Config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SITES, HELD_OUT, INK = "#8093ab", "#c8374a", "#333a44"
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "text.parse_math": False,  # a run's name may contain dollars
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
UNITS = {  # of a loss by task; of others it is nats per token
    **dict.fromkeys(("classification", CHOOSING), "nats per example"),
    ESTIMATING: "squared error in units of target-scale",
}
# of a figure of 11 by 4.8 inches; a constrained layout would draw everything twice
MARGINS = {"left": 0.08, "right": 0.985, "bottom": 0.125, "top": 0.86, "wspace": 0.05}
SMOOTHED_FROM = 20  # rounds: a shorter curve is drawn as it is


@dataclass(frozen=True)
class Curves:
    """The values of a loss plot: both losses, and the bytes of each round."""

    rounds: Sequence[int]  # committed
    sites: Sequence[float]  # loss of each
    evaluated: Sequence[int]  # rounds, 0 is the untrained model
    held_out: Sequence[float]  # loss of each
    spent: Sequence[float]  # payload bytes per client, both directions, after 0, 1, 2 … rounds
    message_share: float  # bytes as messages / bytes of payload
    accuracy: Sequence[float] = ()  # held out, of each evaluation; empty without classes

    @classmethod
    def of(cls, ledger: LedgerReader) -> "Curves":
        """Read the curves; a run that goes on may meanwhile have evaluated one more round."""
        rounds = ledger.metrics()
        evaluations = [e for e in ledger.evaluations() if e.round <= len(rounds)]
        accuracies = ledger.scores().get("accuracy", [])
        traffic = ledger.traffic_totals()
        most = max((m.clients for m in rounds), default=0) or 1  # a rewind has no clients
        costs = ((m.bytes_up + m.bytes_down) / (m.clients or most) for m in rounds)
        return cls(
            [m.round for m in rounds],
            [math.nan if m.loss is None else m.loss for m in rounds],
            [e.round for e in evaluations],
            [e.loss for e in evaluations],
            list(accumulate(costs, initial=0.0)),
            traffic.message / traffic.payload if traffic.payload else 1.0,
            [value for round_, value in accuracies if round_ <= len(rounds)],
        )

    @property
    def headline(self) -> str:
        """The held-out loss and accuracy that the run reached, and its bytes."""
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


def draw_losses(ledger: LedgerReader, path: Path) -> None:
    """Draw the sites' loss of every round and the evaluations into a PNG file."""
    loss_figure(ledger).savefig(path, dpi=140)


def loss_figure(ledger: LedgerReader) -> "Figure":
    """The sites' loss of every round and the evaluations, against rounds and against bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = Curves.of(ledger)
    unit, size = unit_of(curves.spent[-1])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.8))
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True, gridspec_kw=MARGINS)
        _draw(left, curves, list(range(len(curves.spent))))
        _draw(right, curves, [spent / size for spent in curves.spent])
        left.set(xlabel="round", ylabel=loss_title(read_config(ledger)))
        right.set(xlabel=f"payload per client, up and down ({unit})")
        left.legend(frameon=False, loc="upper right")
        figure.suptitle(f"{ledger.path.absolute().parent.name}\n{curves.headline}", fontsize=12)
    return figure


def loss_title(config: Config) -> str:
    """The loss with its unit; that of a problem of one's own is as it says."""
    unit = UNITS.get(config.data.task, "nats per token")
    return "loss" if config.model.app else f"loss ({unit})"


def unit_of(count: float) -> tuple[str, float]:
    """The largest unit that ``count`` bytes reach, and its size in bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return unit, size
    return "bytes", 1.0


def smooth(values: Sequence[float]) -> list[float]:
    """Centred moving average (n,) over a tenth of the values; the window narrows at both ends."""
    reach, sums = len(values) // 20, np.cumsum([0.0, *values])
    narrow = [min(reach, i, len(values) - 1 - i) for i in range(len(values))]
    return [float((sums[i + n + 1] - sums[i - n]) / (2 * n + 1)) for i, n in enumerate(narrow)]


def _draw(axes: Any, curves: Curves, at: Sequence[float]) -> None:  # noqa: ANN401
    """Draw both losses; ``at[r]`` is the abscissa of round r."""
    xs = [at[round_] for round_ in curves.rounds]
    if len(xs) >= SMOOTHED_FROM:
        axes.plot(xs, curves.sites, color=SITES, lw=0.8, alpha=0.45)
        axes.plot(xs, smooth(curves.sites), color=SITES, lw=2, label="at the sites (smoothed)")
    else:
        axes.plot(xs, curves.sites, color=SITES, lw=2, label="at the sites")
    evaluated = [at[round_] for round_ in curves.evaluated]
    line = {"lw": 2, "marker": "o", "ms": 4, "clip_on": False, "zorder": 3}
    axes.plot(evaluated, curves.held_out, color=HELD_OUT, label="held out", **line)
    axes.margins(x=0.02)
    axes.set_xlim(left=0)
