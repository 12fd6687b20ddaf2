"""Pictures of a sweep: loss curves by setting, final losses, gradient norms, FO against ZO."""

from collections.abc import Callable, Sequence
from contextlib import closing
from math import nan
from pathlib import Path
from typing import Any

from dandelion.comparisons.curves import CurvePoint, points_of
from dandelion.sweeps.cells import CellResult
from dandelion.sweeps.table import rank
from server.ledger.reader import LedgerReader
from server.ledger.run_folder import LEDGER
from server.reporting.loss_plot import STYLE, smooth

LOSS = "held-out loss"
MOST_CURVES = 40  # in one picture: those of the best cells
LOG_AXIS_FROM = 30.0  # ratio of the largest to the smallest value


def draw(results: Sequence[CellResult], keys: Sequence[str], folder: Path) -> list[Path]:
    """Draw the results into ``folder``; return the files.

    ``loss-by-KEY.png`` for every key: curves over rounds and over forward passes, coloured by its
    value; ``final-loss-by-KEY.png`` for keys of numbers; ``gradient-norm.png``; and, if the sweep
    varied ``mode`` and one mode was ``fo``, ``fo-against-zo.png``.
    """
    best = rank(results)[:MOST_CURVES]
    if not best:
        return []
    curves = {r.name: points_of(r.folder) for r in best}
    files = [_draw_curves(best, curves, key, folder / f"loss-by-{key}.png") for key in keys]
    files += [_draw_finals(best, key, keys, folder / f"final-loss-by-{key}.png")
              for key in keys if _are_numbers(best, key)]  # fmt: skip
    files.append(_draw_norms(best, folder / "gradient-norm.png"))
    modes = {str(r.settings.get("mode")) for r in best}
    if "fo" in modes and len(modes) > 1:
        firsts = [next(r for r in best if r.settings["mode"] == mode) for mode in sorted(modes)]
        files.append(_draw_curves(firsts, curves, "mode", folder / "fo-against-zo.png"))
    return files


def _are_numbers(results: Sequence[CellResult], key: str) -> bool:
    values = {r.settings[key] for r in results}
    return len(values) > 1 and all(type(value) in (int, float) for value in values)


def _draw_curves(
    results: Sequence[CellResult], curves: dict[str, list[CurvePoint]], key: str, path: Path
) -> Path:
    colours = _colours([r.settings[key] for r in results])

    def paint(left: Any, right: Any) -> None:  # noqa: ANN401
        labelled: set[Any] = set()
        for each in results:
            value = each.settings[key]
            label = None if value in labelled else f"{key} = {_text(value)}"
            labelled.add(value)
            line = {"color": colours[value], "lw": 1.6, "marker": "o", "ms": 2.5, "label": label}
            losses = [point.loss for point in curves[each.name]]
            left.plot([point.round for point in curves[each.name]], losses, **line)
            right.plot([point.forwards for point in curves[each.name]], losses, **line)
        left.set(xlabel="round", ylabel=LOSS)
        right.set(xlabel="forward passes per client (a backward counts two)")
        left.legend(frameon=False)

    return _save(path, paint)


def _draw_finals(results: Sequence[CellResult], key: str, keys: Sequence[str], path: Path) -> Path:
    """Final loss against a number; a line joins cells whose other settings agree."""
    lines: dict[tuple[Any, ...], list[CellResult]] = {}
    for each in results:
        lines.setdefault(tuple(each.settings[k] for k in keys if k != key), []).append(each)

    def paint(left: Any, right: Any) -> None:  # noqa: ANN401
        for others, cells in lines.items():
            row = sorted(cells, key=lambda r: r.settings[key])
            losses, label = [r.final_loss for r in row], ", ".join(map(_text, others))
            left.plot([r.settings[key] for r in row], losses, marker="o", label=label or None)
            right.plot([r.forwards for r in row], losses, marker="o")
        values = [abs(r.settings[key]) for r in results]
        if min(values) > 0 and max(values) / min(values) > LOG_AXIS_FROM:
            left.set_xscale("log")
        left.set(xlabel=key, ylabel=f"final {LOSS}")
        right.set(xlabel="forward passes per client that it took")
        if len(lines) > 1:
            left.legend(frameon=False)

    return _save(path, paint)


def _draw_norms(results: Sequence[CellResult], path: Path) -> Path:
    def paint(left: Any, right: Any) -> None:  # noqa: ANN401
        for each in results:
            with closing(LedgerReader.open(each.folder / LEDGER)) as ledger:
                steps = [metrics for metrics in ledger.metrics() if metrics.clients > 0]
            rounds = [step.round for step in steps]
            left.plot(rounds, smooth([s.gradient_norm for s in steps]), lw=1.2, label=each.name)
            right.plot(rounds, smooth([nan if s.loss is None else s.loss for s in steps]), lw=1.2)
        left.set(xlabel="round", ylabel="gradient norm, estimated", yscale="log")
        right.set(xlabel="round", ylabel="loss at the sites")
        if len(results) <= 8:
            left.legend(frameon=False, fontsize=8)

    return _save(path, paint)


def _save(path: Path, paint: Callable[[Any, Any], None]) -> Path:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        paint(*figure.subplots(1, 2))
        figure.savefig(path, dpi=140)
    return path


def _colours(values: Sequence[Any]) -> dict[Any, Any]:
    """A colour for each value: a ramp for numbers, distinct colours for names."""
    import matplotlib

    distinct = list(dict.fromkeys(values))
    if all(type(value) in (int, float) for value in distinct):
        distinct = sorted(distinct)
        ramp = matplotlib.colormaps["viridis"]
        return {v: ramp(0.9 * k / max(1, len(distinct) - 1)) for k, v in enumerate(distinct)}
    return {v: f"C{k % 10}" for k, v in enumerate(distinct)}


def _text(value: Any) -> str:  # noqa: ANN401
    return f"{value:.4g}" if isinstance(value, float) else str(value)
