"""PNG pictures of a comparison: loss against each cost, one file per axis."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.reporting.loss_plot import STYLE

LOG_FROM = 100.0  # costs that span more than this factor are drawn on a logarithmic axis


def draw(comparison: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw ``comparison-<axis>.png`` for every axis into ``folder``; return the files."""
    return [_draw(comparison, axis, folder / f"comparison-{axis}.png")
            for axis in comparison["axes"]]  # fmt: skip


def _draw(comparison: Mapping[str, Any], axis: str, path: Path) -> Path:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    methods = comparison["methods"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for method in methods:
            points = method["points"]
            axes.plot([p[axis] for p in points], [p["loss"] for p in points],
                      marker="o", ms=3, lw=2, label=method["name"])  # fmt: skip
        ends = [method["totals"][axis] for method in methods]
        if min(ends) > 0 and max(ends) / min(ends) > LOG_FROM:
            axes.set_xscale("symlog", linthresh=min(ends) / 10)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 10k, 1M: no formulas
        target = comparison["target_loss"]
        axes.axhline(target, lw=1, ls=":", color="#333a44", label=f"target {target:.3g}")
        axes.set(xlabel=comparison["axes"][axis], ylabel="held-out loss (nats per token)")
        axes.legend(frameon=False)
        figure.savefig(path, dpi=140)
    return path
