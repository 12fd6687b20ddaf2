"""Files of the benchmark: all points as JSON and CSV, a table in Markdown, and a picture."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import inf, isfinite
from pathlib import Path
from typing import Any

from dandelion.bench.learning.methods import PROBE, TWO_POINT
from dandelion.bench.learning.race_points import AXES, RaceCurve, RacePoint, middle
from server.reporting.loss_plot import STYLE
from shared.base.files import write_atomically

REFERENCES = "mezo", TWO_POINT  # evaluations are counted to the loss at which the first ends
TITLES = ("method", "rate", "loss", "accuracy", "evaluations to {}'s end", "evaluations",
          "examples", "seconds", "payload up", "message bytes")  # fmt: skip
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
    target = middle([curve.final for curve in best[reference]])[0] if reference in best else inf
    rates = {name: sorted({c.rate for c in curves if c.method == name and c.rate}) for name in best}
    return [_row(name, own, rates[name], target) for name, own in best.items()]


def _reference(curves: Sequence[RaceCurve]) -> str:
    raced = {curve.method for curve in curves}
    return next((name for name in REFERENCES if name in raced), REFERENCES[0])


def _row(
    name: str, curves: Sequence[RaceCurve], rates: Sequence[float], target: float
) -> list[str]:
    rate = curves[0].rate
    edge = len(rates) > 2 and rate in (rates[0], rates[-1])
    at = [curve.first_at(target) for curve in curves]
    reached = sorted(point.evaluations for point in at if point is not None)
    ends = [curve.points[-1] for curve in curves if curve.points]
    accuracies = [end.accuracy for end in ends if end.accuracy is not None]
    return [
        name,
        "–" if rate is None else f"{rate:.2g}" + " (edge)" * edge,
        _spread([curve.final for curve in curves], "{:.4f}"),
        _spread([100 * each for each in accuracies], "{:.1f} %") if accuracies else "–",
        _evaluations_text(reached, len(curves)) if isfinite(target) else "–",
        *(_cost(ends, axis) for axis in ("evaluations", "examples", "seconds")),
        *(_cost(ends, axis) for axis in ("payload_up", "message")),
    ]


def _evaluations_text(evaluations: Sequence[float], seeds: int) -> str:
    return f"{middle(evaluations)[0]:,.0f}" if len(evaluations) == seeds else "never"


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


def write_files(problem: str, about: str, curves: Sequence[RaceCurve], folder: Path) -> list[Path]:
    """Write ``PROBLEM.json``, ``.csv``, ``.md`` and ``.png`` into ``folder``; return the paths."""
    data: Mapping[str, Any] = {
        "problem": problem,
        "about": about,
        "axes": AXES,
        "curves": [asdict(curve) for curve in curves],
    }
    texts = {
        "json": json.dumps(data, indent=1, ensure_ascii=False) + "\n",
        "csv": _csv(problem, curves),
        "md": markdown(curves),
    }
    paths = [folder / f"{problem}.{end}" for end in (*texts, "png")]
    for path, text in zip(paths, texts.values(), strict=False):
        write_atomically(path, text.encode())
    draw(about, curves, paths[-1])
    return paths


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


def draw(about: str, curves: Sequence[RaceCurve], path: Path) -> None:
    """Draw accuracy, or loss, of the best rates against four costs; a band covers all seeds."""
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
            axes.set_xscale("log")
            axes.set_xlabel(AXES[axis].partition(" (")[0])
            axes.set_ylabel(f"held-out {score}")
        axes.legend(fontsize=9, frameon=False)
        figure.suptitle(about)
        figure.savefig(path, dpi=120)


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
