"""Growth of cost: round time and memory against parameters, queries and clients, as exponents."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from dandelion.bench.rows import THREADS, BenchRow, run_apart

SIZES = {  # a GPT-2 of bytes: width, layers; parameters
    "0.1 M": (64, 2),
    "0.9 M": (128, 4),
    "5 M": (256, 6),
    "25 M": (512, 8),
    "85 M": (768, 12),
    "302 M": (1024, 24),
}
LARGEST_REPLAY = 1_000_000_000  # parameters
QUERIES = (1, 2, 4, 8, 16, 32, 64)
CLIENTS = (10, 30, 100, 300, 1000)
REPLAYED = 16  # directions of a replayed round
LENGTH, REPEATS = 64, 3


@dataclass(frozen=True)
class Curve:
    """A measured cost against what it grows with: one line of the picture."""

    name: str
    against: str
    unit: str
    x: Sequence[float]
    y: Sequence[float]

    @property
    def exponent(self) -> float:
        """The slope of a straight line fitted to the logarithms."""
        return float(np.polyfit(np.log(self.x), np.log(self.y), 1)[0])


def growth(picture: Path | None = None) -> list[BenchRow]:
    """The last value of each curve; its ratio is the fitted exponent (1: in proportion)."""
    curves = measure_curves()
    if picture is not None:
        draw(curves, picture)
    return [
        BenchRow(
            f"{c.name} against {c.against}",
            c.y[-1],
            c.exponent,
            f"{c.unit} at {c.x[-1]:,.0f}; fitted exponent, {len(c.x)} points from {c.x[0]:,.0f}",
        )
        for c in curves
    ]


def measure_curves() -> list[Curve]:
    """Measure all curves; each point in a process of its own, for its peak memory."""
    points = [run_apart(__spec__.name, "size", name) for name in SIZES]
    replays = [*points, run_apart(__spec__.name, "replay", str(LARGEST_REPLAY))]
    queries = [run_apart(__spec__.name, "queries", str(q)) for q in QUERIES]
    clients = [run_apart(__spec__.name, "clients", str(n)) for n in CLIENTS]
    d, all_d = ([p["parameters"] for p in some] for some in (points, replays))
    return [
        Curve("query, two evaluations", "parameters", "s", d, [p["query"] for p in points]),
        Curve("replay of 16 directions", "parameters", "s", all_d, [p["replay"] for p in replays]),
        Curve("memory of a site", "parameters", "MiB", d, [p["memory"] for p in points]),
        Curve("measuring q directions", "queries", "s", QUERIES, [p["seconds"] for p in queries]),
        Curve("memory of a site", "queries", "MiB", QUERIES, [p["memory"] for p in queries]),
        Curve("round, merged", "clients", "s", CLIENTS, [p["seconds"] for p in clients]),
        Curve("memory", "clients", "MiB", CLIENTS, [p["memory"] for p in clients]),
    ]


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw a log-log picture: seconds above, memory below, a column for each quantity."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, NullFormatter

    against = list(dict.fromkeys(curve.against for curve in curves))
    figure = Figure(figsize=(4.2 * len(against), 6.4), layout="constrained")
    axes = figure.subplots(2, len(against), squeeze=False)
    for curve in curves:
        axis = axes[int(curve.unit != "s"), against.index(curve.against)]
        axis.loglog(curve.x, curve.y, "o-", label=f"{curve.name}: exponent {curve.exponent:.2f}")
        axis.set_xlabel(curve.against)
        axis.set_ylabel("seconds" if curve.unit == "s" else "peak memory, MiB above the start")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter(LogFormatter())
        axis.yaxis.set_minor_formatter(LogFormatter())
        axis.set_ylim(
            min(*axis.get_ylim(), min(curve.y) / 3), max(*axis.get_ylim(), 3 * max(curve.y))
        )
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)


@contextmanager
def _note_peak(point: dict[str, float]) -> Iterator[None]:
    """Note the peak memory of a block in ``point``, in MiB above the memory before it (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    yield
    point["memory"] = max(_status("VmHWM") - before, 0.1)


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def _median(way: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        way()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def _size(name: str, queries: int = 1) -> dict[str, float]:
    """Measure and replay with a model; a small one has loaded the kernels before."""
    _model(next(iter(SIZES)), 1)
    return _model(name, queries)


def _model(name: str, queries: int) -> dict[str, float]:
    import torch

    from shared.base.flat import flatten
    from shared.directions import DIRECTIONS
    from shared.estimation.perturber import Perturber
    from shared.estimation.two_point import two_point
    from shared.models.gpt2 import BYTES, Shape, hollow, initialise_
    from shared.models.next_token import next_token_loss
    from shared.randomness.streams import Key

    torch.set_num_threads(THREADS)
    width, layers = SIZES[name]
    point: dict[str, float] = {}
    with _note_peak(point):
        module = hollow(Shape(width, layers, max(2, width // 64), 128, BYTES))
        initialise_(module, 1, layers)
        model = flatten(module)
        directions = DIRECTIONS["rademacher"](model.layout)
        perturber = Perturber(model, directions)
        blocks = torch.arange(LENGTH).view(1, -1) % BYTES
        keys = [Key(1, 1, 0, k) for k in range(queries)]

        def loss(query: int) -> float:
            return next_token_loss(module, blocks)

        point["query"] = _median(lambda: two_point(loss, perturber, keys, 1e-3))
    some = [Key(1, 2, 0, k) for k in range(REPLAYED)]
    point["replay"] = _median(lambda: directions.add_to_(model.flat, some, [1e-9] * REPLAYED))
    return point | {"parameters": model.layout.parameters, "seconds": point["query"]}


def _replay(parameters: int) -> dict[str, float]:
    """Replay a round on a vector without a model."""
    import torch

    from shared.base.flat import Layout
    from shared.directions import DIRECTIONS
    from shared.randomness.streams import Key

    torch.set_num_threads(THREADS)
    layout = Layout.of([("all", (parameters,))])
    directions, flat = DIRECTIONS["rademacher"](layout), torch.zeros(layout.size)
    keys = [Key(1, 1, 0, k) for k in range(REPLAYED)]
    seconds = _median(lambda: directions.add_to_(flat, keys, [1e-9] * REPLAYED))
    return {"parameters": parameters, "replay": seconds}


def _clients(count: int) -> dict[str, float]:
    """Rounds of ``count`` merged clients with one example each."""
    from dandelion.bench.clients import time_rounds

    point: dict[str, float] = {}
    time_rounds(2, 1, merge=True, rounds=3)
    with _note_peak(point):
        point["seconds"] = time_rounds(count, 1, merge=True, rounds=5)
    return point


def main(what: str, value: str) -> None:
    """Print one point as JSON."""
    points: dict[str, Callable[[str], dict[str, float]]] = {
        "size": _size,
        "replay": lambda text: _replay(int(text)),
        "queries": lambda text: _size("0.9 M", int(text)),
        "clients": lambda text: _clients(int(text)),
    }
    print(json.dumps(points[what](value)))


if __name__ == "__main__":
    main(*sys.argv[1:])
