"""A comparison for readers: a table, pictures, and one HTML file that needs no network."""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.reporting.loss_plot import STYLE

LOG_AXIS_FROM = 100.0  # ratio of the largest to the smallest cost
AXIS_BUTTON = '<button type="button" data-axis="{axis}">{title}</button>'
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Dandelion: comparison</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; --ink: #333a44; --back: #fff; --line: #e4e7ec; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e3e7ed; --back: #15191f;
  --line: #3b4451; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  margin: 2rem auto; max-width: 70rem; padding: 0 1rem; overflow-wrap: break-word; }}
button {{ font: inherit; padding: .3rem .8rem; margin: 0 .3rem .3rem 0; border: 1px solid #b7bec8;
  border-radius: .4rem; background: var(--back); color: var(--ink); cursor: pointer; }}
button.chosen {{ background: var(--ink); color: var(--back); }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }}
th:first-child, td:first-child {{ text-align: left; }}
#chart {{ height: 30rem; }}
</style>
<script>{plotly}</script></head><body>
<h1>What each method costs for the loss it reaches</h1>
<p id="about">{about}</p>
<ul id="verdicts">{verdicts}</ul>
<div id="axes">{buttons}</div>
<div id="chart" role="img" aria-label="Held-out loss of each method against its cost"></div>
<p>Lower is better. Click a name in the legend to hide or show a method. Payload is what we encode,
messages are what Flower serialises; costs are per client, up and down.</p>
<div class="wide" tabindex="0" role="region" aria-label="Costs of each method">{table}</div>
<script>
const comparison = {data};
const chart = document.getElementById("chart");
const GREY = "rgba(128, 136, 150, 0.55)";
const layout = axis => ({{
  xaxis: {{title: {{text: comparison.axes[axis]}}, rangemode: "tozero", gridcolor: GREY}},
  yaxis: {{title: {{text: "held-out loss"}}, gridcolor: GREY}},
  margin: {{t: 10}}, legend: {{orientation: "h", y: 1.12}}, paper_bgcolor: "transparent",
  plot_bgcolor: "transparent", font: {{color: getComputedStyle(document.body).color}},
  shapes: [{{type: "line", xref: "paper", x0: 0, x1: 1, y0: comparison.target_loss,
    y1: comparison.target_loss, line: {{dash: "dot", width: 1, color: GREY}}}}]
}});
const xs = axis => comparison.methods.map(method => method.points.map(point => point[axis]));
Plotly.newPlot(chart, comparison.methods.map((method, number) => ({{
  name: method.name, x: xs("round")[number], y: method.points.map(point => point.loss),
  mode: "lines+markers"
}})), layout("round"), {{responsive: true, displaylogo: false}});
const choose = axis => {{
  Plotly.update(chart, {{x: xs(axis)}}, layout(axis));
  for (const button of document.querySelectorAll("#axes button"))
    button.ariaPressed = button.classList.toggle("chosen", button.dataset.axis === axis);
}};
for (const button of document.querySelectorAll("#axes button"))
  button.addEventListener("click", () => choose(button.dataset.axis));
choose("round");
</script></body></html>
"""


def page(comparison: Mapping[str, Any]) -> str:
    """The text of ``comparison.html``: table, interactive chart and all scripts in one file."""
    from plotly.offline import get_plotlyjs

    axes = {axis: title.partition(" (")[0] for axis, title in comparison["axes"].items()}
    return PAGE.format(
        plotly=get_plotlyjs(),
        about=html.escape(about_text(comparison)),
        verdicts="".join(f"<li>{html.escape(text)}</li>" for text in comparison["verdicts"]),
        buttons="".join(AXIS_BUTTON.format(axis=a, title=html.escape(t)) for a, t in axes.items()),
        table=_table(comparison),
        data=json.dumps(comparison, ensure_ascii=False).replace("<", "\\u003c"),
    )


def about_text(comparison: Mapping[str, Any]) -> str:
    """Model, data, sites, budget, rates, seed, date and code in one line."""
    return "; ".join(f"{name}: {value}" for name, value in comparison["about"].items())


def table_rows(comparison: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table: cost to the target, final loss, memory of a client."""
    axes = list(comparison["axes"])
    titles = [
        "method",
        *(f"{axis} to target" for axis in axes),
        "final loss",
        "rate",
        "client memory",
    ]
    rows = [
        [
            method["name"],
            *_costs(method["to_target"], axes),
            _loss_text(method),
            rate_text(method["learning_rate"]),
            _size(method["peak_memory_bytes"]),
        ]
        for method in comparison["methods"]
    ]
    return titles, rows


def rate_text(rate: float | None) -> str:
    """A learning rate for a table; auto if a rule made those of all rounds."""
    return "auto" if rate is None else f"{rate:.3g}"


def _costs(target: Mapping[str, float] | None, axes: list[str]) -> list[str]:
    if target is None:
        return ["never", *["–"] * (len(axes) - 1)]
    return [f"{target[axis]:,.4g}" if axis == "seconds" else f"{target[axis]:,.0f}"
            for axis in axes]  # fmt: skip


def _loss_text(method: Mapping[str, Any]) -> str:
    """The final loss, the accuracy if the task has classes, and whether it did not settle."""
    accuracy = method["points"][-1].get("accuracy")
    text = f"{method['final_loss']:.4f}" + (f", {accuracy:.1%}" if accuracy is not None else "")
    return text if method["settled"] else f"{text} (not settled)"


def _size(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:,.0f} MB"


def _table(comparison: Mapping[str, Any]) -> str:
    titles, rows = table_rows(comparison)
    lines = ["".join(f"<th>{html.escape(title)}</th>" for title in titles)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


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
        if min(ends) > 0 and max(ends) / min(ends) > LOG_AXIS_FROM:
            axes.set_xscale("symlog", linthresh=min(ends) / 10)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 10k, 1M instead of powers of ten
        target = comparison["target_loss"]
        axes.axhline(target, lw=1, ls=":", color="#333a44", label=f"target {target:.3g}")
        axes.set(xlabel=comparison["axes"][axis], ylabel="held-out loss")
        axes.legend(frameon=False)
        figure.savefig(path, dpi=140)
    return path
