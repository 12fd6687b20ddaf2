"""A ladder of scopes: each rung trains more of a model, and begins where the one before ended.

Few numbers that are measured exactly come first, then more that cost more evaluations each. The
ladder ends at the first rung that no longer pays. Every rung is a run with a ledger of its own;
``init-from`` in its settings names the rung before.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dandelion.comparisons.curves import AXES, CurvePoint, points_of
from dandelion.engines.local import run_local
from server.reporting.loss_plot import STYLE
from shared.base.files import write_atomically
from shared.config.schema import Config

LADDER_FILE, PICTURE_FILE = "ladder.json", "ladder.png"
LEAST_FALL = 0.01  # of the loss, as a share of it, below which a rung does not pay
LEAST_GAIN = 0.005  # of the accuracy; either of the two is enough


@dataclass(frozen=True)
class Rung:
    """A run of the ladder: its evaluations, with costs counted from the ladder's foot."""

    scope: str
    folder: str
    parameters: int  # that are trained
    points: Sequence[CurvePoint]
    pays: bool

    @property
    def start(self) -> CurvePoint:
        """The evaluation before the first round."""
        return self.points[0]

    @property
    def end(self) -> CurvePoint:
        """The evaluation after the last round."""
        return self.points[-1]


def climb(
    configs: Mapping[str, Config],
    folder: Path,
    say: Callable[[str], None],
    train: Callable[[Config], Path] = run_local,
) -> list[Rung]:
    """Train rung after rung until one does not pay; write ``ladder.json`` and ``ladder.png``.

    Args:
        configs: the rungs, lowest first, by name of their scope.
        folder: of the ladder; each rung's run folder is made in it.
        say: prints a line of progress.
        train: trains one rung and returns its run folder.
    """
    rungs: list[Rung] = []
    for number, (scope, config) in enumerate(configs.items(), 1):
        before = rungs[-1].folder if rungs else config.model.init_from
        run = config.replace(
            init_from=before, output_dir=str(folder), run_name=f"{number}-{scope}", save_model=True
        )
        rungs.append(_rung(scope, train(run), rungs))
        write_atomically(folder / LADDER_FILE, report_of(rungs).encode())
        say(describe(rungs[-1]))
        if not rungs[-1].pays:
            break
    draw(rungs, folder / PICTURE_FILE)
    return rungs


def _rung(scope: str, folder: Path, below: Sequence[Rung]) -> Rung:
    points = points_of(folder)
    if below:
        points = [_add(point, below[-1].end) for point in points]
    parameters = json.loads((folder / "summary.json").read_text())["parameters"]
    return Rung(scope, str(folder), int(parameters), points, pays(points[0], points[-1]))


def _add(point: CurvePoint, spent: CurvePoint) -> CurvePoint:
    """A point with the costs of all rungs below added."""
    costs = {axis: getattr(point, axis) + getattr(spent, axis) for axis in AXES}
    return CurvePoint(**{**asdict(point), **costs})


def pays(start: CurvePoint, end: CurvePoint) -> bool:
    """Whether a rung lowered the held-out loss, or raised the accuracy, by enough."""
    if start.loss - end.loss >= LEAST_FALL * abs(start.loss):
        return True
    if start.accuracy is None or end.accuracy is None:
        return False
    return end.accuracy - start.accuracy >= LEAST_GAIN


def best(rungs: Sequence[Rung]) -> Rung:
    """The highest rung that pays; the lowest of all if none does."""
    return next((rung for rung in reversed(rungs) if rung.pays), rungs[0])


def describe(rung: Rung) -> str:
    """One line about a rung: what it trained, what it gained, what all rungs so far cost."""
    gain = f"loss {rung.start.loss:.4f} → {rung.end.loss:.4f}"
    if rung.start.accuracy is not None and rung.end.accuracy is not None:
        gain += f", accuracy {rung.start.accuracy:.1%} → {rung.end.accuracy:.1%}"
    cost = (
        f"{rung.end.forwards:,.0f} forward passes, {rung.end.payload:,.0f} B of payload a site, "
        f"{rung.end.seconds:,.0f} s so far"
    )
    verdict = "" if rung.pays else "; it no longer pays"
    return f"{rung.scope}: {rung.parameters:,} numbers; {gain}; {cost}{verdict}"


def report_of(rungs: Sequence[Rung]) -> str:
    """The content of ``ladder.json``."""
    content: dict[str, Any] = {
        "axes": AXES,
        "best": best(rungs).folder,
        "rungs": [asdict(rung) for rung in rungs],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def draw(rungs: Sequence[Rung], path: Path) -> None:
    """Draw accuracy, or else loss, over payload, forward passes and seconds, rung by rung."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scored = all(rung.end.accuracy is not None for rung in rungs)
    value, title = ("accuracy", "held-out accuracy") if scored else ("loss", "held-out loss (nats)")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 3, sharey=True)
        for panel, axis in zip(panels, ("payload", "forwards", "seconds"), strict=True):
            for rung in rungs:
                points = rung.points
                panel.plot([getattr(p, axis) for p in points], [getattr(p, value) for p in points],
                           marker="o", ms=3, lw=2, label=rung.scope)  # fmt: skip
            panel.set_xlabel(AXES[axis].partition(" (")[0])
        panels[0].set_ylabel(title)
        panels[0].legend(frameon=False)
        figure.savefig(path, dpi=140)
