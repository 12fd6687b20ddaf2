"""Pictures of a sweep: curves by what was varied, final losses, gradient norms, FO against ZO."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from dandelion.compare.curves import Point, points_of
from dandelion.sweep.cells import Outcome
from dandelion.sweep.table import ranked
from server.ledger.reader import LedgerReader
from server.ledger.run_folder import LEDGER
from server.reporting.loss_plot import STYLE, smooth

LOSS = "held-out loss (nats per token)"
MOST_CURVES = 40  # in one picture: the best ones
LOG_FROM = 30.0  # values that span more than this factor are drawn on a logarithmic axis


def draw(outcomes: Sequence[Outcome], keys: Sequence[str], folder: Path) -> list[Path]:
    """Draw what the sweep varied into ``folder``; return the files.

    ``loss-by-KEY.png`` for every key: curves over rounds and over forward passes, coloured by its
    value; ``final-loss-by-KEY.png`` for keys of numbers; ``gradient-norm.png``; and, where modes
    were varied and one of them was ``fo``, ``fo-against-zo.png``.
    """
    best = ranked(outcomes)[:MOST_CURVES]
    if not best:
        return []
    curves = {o.name: points_of(o.folder) for o in best}
    files = [_curves(best, curves, key, folder / f"loss-by-{key}.png") for key in keys]
    files += [_finals(best, key, keys, folder / f"final-loss-by-{key}.png")
              for key in keys if _numbers(best, key)]  # fmt: skip
    files.append(_norms(best, folder / "gradient-norm.png"))
    modes = {str(o.settings.get("mode")) for o in best}
    if "fo" in modes and len(modes) > 1:
        firsts = [next(o for o in best if o.settings["mode"] == mode) for mode in sorted(modes)]
        files.append(_curves(firsts, curves, "mode", folder / "fo-against-zo.png"))
    return files


def _numbers(outcomes: Sequence[Outcome], key: str) -> bool:
    values = {o.settings[key] for o in outcomes}
    return len(values) > 1 and all(type(value) in (int, float) for value in values)


def _curves(
    outcomes: Sequence[Outcome], curves: dict[str, list[Point]], key: str, path: Path
) -> Path:
    colours = _colours([o.settings[key] for o in outcomes])

    def paint(left: Any, right: Any) -> None:  # noqa: ANN401
        said: set[Any] = set()
        for each in outcomes:
            value = each.settings[key]
            label = None if value in said else f"{key} = {_text(value)}"
            said.add(value)
            line = {"color": colours[value], "lw": 1.6, "marker": "o", "ms": 2.5, "label": label}
            losses = [point.loss for point in curves[each.name]]
            left.plot([point.round for point in curves[each.name]], losses, **line)
            right.plot([point.forwards for point in curves[each.name]], losses, **line)
        left.set(xlabel="round", ylabel=LOSS)
        right.set(xlabel="forward passes per client (a backward counts two)")
        left.legend(frameon=False)

    return _saved(path, paint)


def _finals(outcomes: Sequence[Outcome], key: str, keys: Sequence[str], path: Path) -> Path:
    """Final loss against a number; cells that agree in all else are joined."""
    lines: dict[tuple[Any, ...], list[Outcome]] = {}
    for each in outcomes:
        lines.setdefault(tuple(each.settings[k] for k in keys if k != key), []).append(each)

    def paint(left: Any, right: Any) -> None:  # noqa: ANN401
        for others, cells in lines.items():
            row = sorted(cells, key=lambda o: o.settings[key])
            losses, label = [o.final_loss for o in row], ", ".join(map(_text, others))
            left.plot([o.settings[key] for o in row], losses, marker="o", label=label or None)
            right.plot([o.forwards for o in row], losses, marker="o")
        values = [abs(o.settings[key]) for o in outcomes]
        if min(values) > 0 and max(values) / min(values) > LOG_FROM:
            left.set_xscale("log")
        left.set(xlabel=key, ylabel=f"final {LOSS}")
        right.set(xlabel="forward passes per client that it took")
        if len(lines) > 1:
            left.legend(frameon=False)

    return _saved(path, paint)


def _norms(outcomes: Sequence[Outcome], path: Path) -> Path:
    def paint(left: Any, right: Any) -> None:  # noqa: ANN401
        for each in outcomes:
            with closing(LedgerReader.open(each.folder / LEDGER)) as ledger:
                steps = [metrics for metrics in ledger.metrics() if metrics.clients > 0]
            rounds = [step.round for step in steps]
            left.plot(rounds, smooth([s.gradient_norm for s in steps]), lw=1.2, label=each.name)
            right.plot(rounds, smooth([step.loss for step in steps]), lw=1.2)
        left.set(xlabel="round", ylabel="gradient norm, estimated", yscale="log")
        right.set(xlabel="round", ylabel="loss at the sites")
        if len(outcomes) <= 8:
            left.legend(frameon=False, fontsize=8)

    return _saved(path, paint)


def _saved(path: Path, paint: Callable[[Any, Any], None]) -> Path:
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
    """A colour for each value: numbers by their order, names apart."""
    import matplotlib

    distinct = list(dict.fromkeys(values))
    if all(type(value) in (int, float) for value in distinct):
        distinct = sorted(distinct)
        ramp = matplotlib.colormaps["viridis"]
        return {v: ramp(0.9 * k / max(1, len(distinct) - 1)) for k, v in enumerate(distinct)}
    return {v: f"C{k % 10}" for k, v in enumerate(distinct)}


def _text(value: Any) -> str:  # noqa: ANN401
    return f"{value:.4g}" if isinstance(value, float) else str(value)
