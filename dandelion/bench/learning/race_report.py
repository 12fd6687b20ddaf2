"""Files of the benchmark: all points as JSON and CSV, a table in Markdown, and a picture."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from dandelion.bench.learning.methods import DECOMFL, MEZO, PROBE, TWO_POINT
from dandelion.bench.learning.problems import PublishedScores, RaceTask
from dandelion.bench.learning.race_points import AXES, RaceCurve, RacePoint, middle
from server.reporting.loss_plot import STYLE
from shared.base.files import write_atomically

REFERENCES = MEZO.name, TWO_POINT, DECOMFL.name  # evaluations are counted to the first one's end
TITLES = ("method", "rate", "loss", "accuracy", "evaluations to {}'s loss",
          "evaluations to {}'s accuracy", "evaluations", "examples", "seconds", "payload up",
          "message bytes")  # fmt: skip
PICTURED = ("evaluations", "seconds", "payload_up", "message")


def best_curves(curves: Sequence[RaceCurve]) -> dict[str, list[RaceCurve]]:
    """By method, the curves of all seeds at the rate whose first seed ended lowest."""
    best: dict[str, list[RaceCurve]] = {}
    for name in dict.fromkeys(curve.method for curve in curves):
        own = [curve for curve in curves if curve.method == name]
        rate = min((c for c in own if c.seed == 1), key=lambda curve: curve.final).rate
        best[name] = [curve for curve in own if curve.rate == rate]
    return best


def table_rows(curves: Sequence[RaceCurve]) -> list[list[str]]:
    """A row per method: medians over the seeds, with the least and the greatest."""
    best = best_curves(curves)
    reference = _reference(curves)
    target = RaceTarget.of(best.get(reference, []))
    rates = {name: sorted({c.rate for c in curves if c.method == name and c.rate}) for name in best}
    return [_row(name, own, rates[name], target) for name, own in best.items()]


@dataclass(frozen=True)
class RaceTarget:
    """Where the method ends to which evaluations are counted; None: nowhere."""

    loss: float | None
    accuracy: float | None

    @classmethod
    def of(cls, curves: Sequence[RaceCurve]) -> "RaceTarget":
        """The medians of some curves of one method."""
        losses = [curve.final for curve in curves if isfinite(curve.final)]
        scores = [curve.accuracy for curve in curves if curve.accuracy is not None]
        return cls(middle(losses)[0] if losses else None, middle(scores)[0] if scores else None)

    def evaluations(self, curves: Sequence[RaceCurve]) -> list[str]:
        """To the loss, and to the accuracy: the median; ``never`` if a seed does not get there."""
        at_loss = [None if self.loss is None else curve.first_at(self.loss) for curve in curves]
        at_accuracy = [
            None if self.accuracy is None else curve.first_with(self.accuracy) for curve in curves
        ]
        return [
            "–" if target is None else _evaluations_text(points)
            for target, points in ((self.loss, at_loss), (self.accuracy, at_accuracy))
        ]


def _reference(curves: Sequence[RaceCurve]) -> str:
    raced = {curve.method for curve in curves}
    return next((name for name in REFERENCES if name in raced), REFERENCES[0])


def _row(
    name: str, curves: Sequence[RaceCurve], rates: Sequence[float], target: RaceTarget
) -> list[str]:
    rate = curves[0].rate
    edge = len(rates) > 2 and rate in (rates[0], rates[-1])
    ends = [curve.points[-1] for curve in curves if curve.points]
    accuracies = [end.accuracy for end in ends if end.accuracy is not None]
    return [
        name,
        "–" if rate is None else f"{rate:.2g}" + " (edge)" * edge,
        _spread([curve.final for curve in curves], "{:.4f}"),
        _spread([100 * each for each in accuracies], "{:.1f} %") if accuracies else "–",
        *target.evaluations(curves),
        *(_cost(ends, axis) for axis in ("evaluations", "examples", "seconds")),
        *(_cost(ends, axis) for axis in ("payload_up", "message")),
    ]


def _evaluations_text(points: Sequence[RacePoint | None]) -> str:
    reached = [point.evaluations for point in points if point is not None]
    return f"{middle(reached)[0]:,.0f}" if len(reached) == len(points) else "never"


def _spread(values: Sequence[float], form: str) -> str:
    if not all(map(isfinite, values)):
        return "diverged"
    centre, least, most = middle(values)
    if len(values) == 1:
        return form.format(centre)
    return f"{form.format(centre)} ({form.format(least)} to {form.format(most)})"


def _cost(ends: Sequence[RacePoint], axis: str) -> str:
    return f"{middle([getattr(end, axis) for end in ends])[0]:,.0f}" if ends else "–"


def markdown(curves: Sequence[RaceCurve]) -> str:
    """The table, for a page of documentation."""
    titles = [title.format(_reference(curves)) for title in TITLES]
    lines = [titles, ["---"] * len(titles), *table_rows(curves)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_files(problem: RaceTask, curves: Sequence[RaceCurve], folder: Path) -> list[Path]:
    """Write ``PROBLEM.json``, ``.csv``, ``.md`` and ``.png`` into ``folder``; return the paths.

    Curves that the folder has of other methods, from an earlier call, are in these files too.
    """
    curves = [*earlier_curves(folder / f"{problem.name}.json", curves), *curves]
    data: Mapping[str, Any] = {
        "problem": problem.name,
        "about": problem.about,
        "axes": AXES,
        "curves": [asdict(curve) for curve in curves],
    }
    texts = {
        "json": json.dumps(data, indent=1, ensure_ascii=False) + "\n",
        "csv": _csv(problem.name, curves),
        "md": markdown(curves),
    }
    paths = [folder / f"{problem.name}.{end}" for end in (*texts, "png")]
    for path, text in zip(paths, texts.values(), strict=False):
        write_atomically(path, text.encode())
    draw(problem, curves, paths[-1])
    return paths


def earlier_curves(path: Path, curves: Sequence[RaceCurve]) -> list[RaceCurve]:
    """The curves of a JSON file of these, but those of methods that have new ones."""
    if not path.is_file():
        return []
    fresh = {curve.method for curve in curves}
    rows = json.loads(path.read_text())["curves"]
    return [
        RaceCurve(**{**row, "points": [RacePoint(**point) for point in row["points"]]})
        for row in rows
        if row["method"] not in fresh
    ]


def _csv(problem: str, curves: Sequence[RaceCurve]) -> str:
    out = io.StringIO()
    names = list(RacePoint.__dataclass_fields__)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["problem", "method", "rate", "seed", *names])
    for curve in curves:
        for point in curve.points:
            values = [getattr(point, name) for name in names]
            writer.writerow([problem, curve.method, curve.rate, curve.seed, *values])
    return out.getvalue()


def draw(problem: RaceTask, curves: Sequence[RaceCurve], path: Path) -> None:
    """Draw accuracy, or loss, of the best rates against four costs; a band covers all seeds.

    Bars are published accuracies, at what our run of that method had cost after as many rounds.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    best = best_curves(curves)
    score = "accuracy" if any(c.accuracy is not None for c in curves) else "loss"
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 8), layout="constrained")
        FigureCanvasAgg(figure)
        for axis, axes in zip(PICTURED, figure.subplots(2, 2).flat, strict=True):
            for name, own in best.items():
                _draw_method(axes, name, own, axis, score)
            if problem.published_scores and score == "accuracy":
                _draw_published(axes, problem.published_scores, best, axis)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            axes.set_xlabel(AXES[axis].partition(" (")[0])
            axes.set_ylabel(f"held-out {score}")
        axes.legend(fontsize=9, frameon=False)
        figure.suptitle(problem.about)
        figure.savefig(path, dpi=120)


def bars_of_scores(
    scores: PublishedScores, best: Mapping[str, Sequence[RaceCurve]], axis: str
) -> list[tuple[float, float, float]]:
    """Cost, least and greatest published accuracy, of each round that our own run evaluated too."""
    curve = next(iter(best.get(scores.method, [])), None)
    points = {point.round: point for point in curve.points} if curve else {}
    return [
        (getattr(points[round_], axis), *band)
        for round_, band in scores.bands.items()
        if round_ in points
    ]


def _draw_published(
    axes: Any,  # noqa: ANN401
    scores: PublishedScores,
    best: Mapping[str, Sequence[RaceCurve]],
    axis: str,
) -> None:
    if bars := bars_of_scores(scores, best, axis):
        x, least, most = zip(*bars, strict=True)
        label = f"{scores.method}, as published"
        axes.vlines(x, least, most, color="black", lw=7, alpha=0.35, label=label)


def _draw_method(axes: Any, name: str, curves: Sequence[RaceCurve], axis: str, score: str) -> None:  # noqa: ANN401
    """A line through the medians of the seeds; the probe, which has no rounds, is dashed."""
    steps = [
        [point for point in points if point is not None and isfinite(point.loss)]
        for points in zip(*(curve.points for curve in curves), strict=False)
    ]
    steps = [points for points in steps if points and getattr(points[0], axis) > 0]
    x = [middle([getattr(point, axis) for point in points])[0] for points in steps]
    spreads = [middle([getattr(point, score) for point in points]) for points in steps]
    if not spreads:
        return
    y, least, most = zip(*spreads, strict=True)
    style = "--" if name == PROBE else "-"
    line = axes.plot(x, y, style, marker="o", ms=3, lw=2, label=name)[0]
    axes.fill_between(x, least, most, color=line.get_color(), alpha=0.15, lw=0)
