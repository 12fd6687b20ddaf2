"""Curves of a run as SVG: each against rounds and against bytes, with its numbers as a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from server.pages.html import Html, element, join, table
from server.reporting.loss_plot import unit_of

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 300, 58, 14, 12, 44
MOST_POINTS = 400  # of a curve: a longer one is thinned out
MOST_ROWS = 40  # of the table of numbers, beside those with an evaluation
MOST_TICKS = 6


@dataclass(frozen=True)
class Series:
    """A curve: its values by round, not finite where there is none."""

    name: str
    mark: str  # its class in the style sheet: sites or held-out
    values: Mapping[int, float]


@dataclass(frozen=True)
class Axis:
    """One axis: what it counts, and the range that is drawn."""

    title: str
    low: float
    high: float

    @property
    def ticks(self) -> list[float]:
        """At most seven round numbers within the range."""
        span = self.high - self.low
        step = 10.0 ** math.floor(math.log10(span / MOST_TICKS))
        step *= next(m for m in (1, 2, 5, 10) if span / (m * step) <= MOST_TICKS)
        first = math.ceil(self.low / step)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Figure:
    """Curves that share their axes, and where the run went back."""

    title: str
    unit: str  # of the values
    series: Sequence[Series]
    spent: Sequence[float]  # bytes per client after 0, 1, 2 … rounds
    rewinds: Sequence[int] = ()

    def html(self) -> Html:
        """Both panels, a legend, and the numbers."""
        unit, size = unit_of(self.spent[-1])
        rounds = [float(k) for k in range(len(self.spent))]
        costs = [spent / size for spent in self.spent]
        legend = join(element("span", each.name, class_=f"key {each.mark}") for each in self.series)
        return element(
            "figure",
            element("h3", self.title),
            element("p", legend),
            element(
                "div",
                self._panel("round", rounds),
                self._panel(f"payload per client, up and down ({unit})", costs),
                class_="panels",
            ),
            element("figcaption", element("details", element("summary", f"{self.title}: numbers"),
                                          self._numbers())),
        )  # fmt: skip

    def _panel(self, title: str, at: Sequence[float]) -> Html:
        """One panel; ``at[r]`` is the abscissa of round r."""
        values = [v for each in self.series for v in each.values.values() if math.isfinite(v)]
        x, y = Axis(title, 0.0, max(at[-1], 1e-9)), range_of(self.unit, values)
        parts = [*_grid(x, y), *(_rewind(x, at[k]) for k in self.rewinds if k < len(at))]
        for each in self.series:
            parts += _curve(each, at, x, y)
        label = f"{self.title} against {title}. " + "; ".join(map(_summary, self.series))
        return element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)

    def _numbers(self) -> Html:
        """The curves as a table, thinned out between evaluations."""
        rounds = sorted({r for each in self.series for r in each.values if r < len(self.spent)})
        step = max(1, len(rounds) // MOST_ROWS)
        few = {r for each in self.series if each.mark == "held-out" for r in each.values}
        rows = [
            (r, f"{self.spent[r]:,.0f}", *(_text(each.values.get(r)) for each in self.series))
            for number, r in enumerate(rounds)
            if number % step == 0 or (r in few and len(few) <= MOST_ROWS) or r == rounds[-1]
        ]
        titles = ["round", "bytes per client", *(each.name for each in self.series)]
        return table(f"{self.title} ({self.unit})", titles, rows, "|".join(titles[1:]))


def range_of(title: str, values: Sequence[float]) -> Axis:
    """An axis that all values fit on, with a margin."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return Axis(title, low - margin, high + margin)


def _point(x: Axis, y: Axis, across: float, up: float) -> tuple[float, float]:
    return (
        LEFT + x.share(across) * (WIDTH - LEFT - RIGHT),
        HEIGHT - BOTTOM - y.share(up) * (HEIGHT - TOP - BOTTOM),
    )


def _grid(x: Axis, y: Axis) -> list[Html]:
    """Lines and labels of both axes."""
    parts = []
    for tick in y.ticks:
        _, up = _point(x, y, x.low, tick)
        parts.append(_line(LEFT, up, WIDTH - RIGHT, up, "grid"))
        parts.append(_label(LEFT - 7, up + 4, f"{tick:.6g}", "end"))
    for tick in x.ticks:
        across, _ = _point(x, y, tick, y.low)
        parts.append(_label(across, HEIGHT - BOTTOM + 18, f"{tick:.6g}", "middle"))
    parts.append(_label((LEFT + WIDTH) / 2, HEIGHT - 6, x.title, "middle"))
    parts.append(
        element("text", y.title, transform=f"translate(13 {HEIGHT / 2 - 16}) rotate(-90)",
                text_anchor="middle")
    )  # fmt: skip
    return parts


def _curve(series: Series, at: Sequence[float], x: Axis, y: Axis) -> list[Html]:
    """The finite stretches of a series, and a dot for each evaluation with its numbers."""
    points = [(r, v) for r, v in sorted(series.values.items()) if r < len(at)]
    step = max(1, len(points) // MOST_POINTS)
    points = [p for k, p in enumerate(points) if k % step == 0 or k == len(points) - 1]
    parts = []
    for is_finite, stretch in groupby(points, lambda point: math.isfinite(point[1])):
        if is_finite:
            places = [_point(x, y, at[r], v) for r, v in stretch]
            text = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
            parts.append(element("polyline", points=text, class_=f"curve {series.mark}"))
    if series.mark == "held-out" or len(points) == 1:
        parts += [_dot(series, r, v, _point(x, y, at[r], v)) for r, v in points if math.isfinite(v)]
    return parts


def _dot(series: Series, round_: int, value: float, place: tuple[float, float]) -> Html:
    tip = element("title", f"round {round_}, {series.name}: {_text(value)}")
    across, up = place
    return element("circle", tip, cx=f"{across:.1f}", cy=f"{up:.1f}", r=3.5, class_=series.mark)


def _rewind(x: Axis, at: float) -> Html:
    across = LEFT + x.share(at) * (WIDTH - LEFT - RIGHT)
    return _line(across, TOP, across, HEIGHT - BOTTOM, "rewind", element("title", "rewind"))


def _line(x1: float, y1: float, x2: float, y2: float, mark: str, *more: Html) -> Html:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return element("line", *more, class_=mark, **{k: f"{v:.1f}" for k, v in ends.items()})


def _label(x: float, y: float, text: str, anchor: str) -> Html:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _text(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"


def _summary(series: Series) -> str:
    finite = [v for _, v in sorted(series.values.items()) if math.isfinite(v)]
    if not finite:
        return f"{series.name}: no value"
    return f"{series.name}: from {_text(finite[0])} to {_text(finite[-1])}"
