"""``comparison.html``: one file with everything in it, which opens without a network."""

import html
import json
from collections.abc import Mapping
from typing import Any

AXIS_BUTTON = '<button type="button" data-axis="{axis}">{title}</button>'
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Dandelion: comparison</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #333a44; margin: 2rem auto; max-width: 70rem;
  padding: 0 1rem; }}
button {{ font: inherit; padding: .3rem .8rem; margin: 0 .3rem .3rem 0; border: 1px solid #b7bec8;
  border-radius: .4rem; background: #fff; cursor: pointer; }}
button.chosen {{ background: #333a44; color: #fff; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #e4e7ec; }}
th:first-child, td:first-child {{ text-align: left; }}
#chart {{ height: 30rem; }}
</style>
<script>{plotly}</script></head><body>
<h1>What each method costs for the loss it reaches</h1>
<ul id="verdicts">{verdicts}</ul>
<div id="axes">{buttons}</div>
<div id="chart"></div>
<p>Lower is better. Click a name in the legend to hide or show a method. Payload is what we encode,
messages are what Flower serialises; costs are per client, up and down.</p>
{table}
<script>
const found = {data};
const chart = document.getElementById("chart");
const layout = axis => ({{
  xaxis: {{title: {{text: found.axes[axis]}}, rangemode: "tozero"}},
  yaxis: {{title: {{text: "held-out loss (nats per token)"}}}},
  margin: {{t: 10}}, legend: {{orientation: "h", y: 1.12}},
  shapes: [{{type: "line", xref: "paper", x0: 0, x1: 1, y0: found.target_loss,
    y1: found.target_loss, line: {{dash: "dot", width: 1}}}}]
}});
const xs = axis => found.methods.map(method => method.points.map(point => point[axis]));
Plotly.newPlot(chart, found.methods.map((method, number) => ({{
  name: method.name, x: xs("round")[number], y: method.points.map(point => point.loss),
  mode: "lines+markers"
}})), layout("round"), {{responsive: true, displaylogo: false}});
const choose = axis => {{
  Plotly.update(chart, {{x: xs(axis)}}, layout(axis));
  for (const button of document.querySelectorAll("#axes button"))
    button.classList.toggle("chosen", button.dataset.axis === axis);
}};
for (const button of document.querySelectorAll("#axes button"))
  button.addEventListener("click", () => choose(button.dataset.axis));
choose("round");
</script></body></html>
"""


def page(comparison: Mapping[str, Any]) -> str:
    """The page of a comparison."""
    from plotly.offline import get_plotlyjs

    axes = {axis: title.partition(" (")[0] for axis, title in comparison["axes"].items()}
    return PAGE.format(
        plotly=get_plotlyjs(),
        verdicts="".join(f"<li>{html.escape(text)}</li>" for text in comparison["verdicts"]),
        buttons="".join(AXIS_BUTTON.format(axis=a, title=html.escape(t)) for a, t in axes.items()),
        table=_table(comparison),
        data=json.dumps(comparison, ensure_ascii=False).replace("</", "<\\/"),
    )


def table_rows(comparison: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: cost to the target, loss at the end, memory of a client."""
    axes = list(comparison["axes"])
    head = ["method", *(f"{axis} to target" for axis in axes), "final loss", "client memory"]
    rows = [
        [
            method["name"],
            *_costs(method["to_target"], axes),
            _reached(method),
            _size(method["peak_memory_bytes"]),
        ]
        for method in comparison["methods"]
    ]
    return head, rows


def _costs(target: Mapping[str, float] | None, axes: list[str]) -> list[str]:
    if target is None:
        return ["never", *["–"] * (len(axes) - 1)]
    return [f"{target[axis]:,.4g}" if axis == "seconds" else f"{target[axis]:,.0f}"
            for axis in axes]  # fmt: skip


def _reached(method: Mapping[str, Any]) -> str:
    """The loss at the end, and the accuracy where the task has classes."""
    accuracy = method["points"][-1].get("accuracy")
    return f"{method['final_loss']:.4f}" + (f", {accuracy:.1%}" if accuracy is not None else "")


def _size(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:,.0f} MB"


def _table(comparison: Mapping[str, Any]) -> str:
    head, rows = table_rows(comparison)
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
