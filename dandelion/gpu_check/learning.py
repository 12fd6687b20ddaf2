"""Learning on a device to equal evaluations: DeComFL's rule beside ours, as rows of settings."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dandelion.gpu_check.federations import train
from dandelion.gpu_check.records import StepTask
from shared.base.errors import ConfigError
from shared.base.options import Value

MARKS = (600, 1_800)  # evaluations of a site at which accuracies are compared
TINY_MARKS = (24, 48)
TASK: Mapping[str, Value] = {
    "model": "smollm2-135m",
    "task": "classification",
    "dataset": "rotten-tomatoes",
    "label-words": "terrible, great",
    "prompt": "{text} It was",
    "block-size": 64,
    "zo-batch-size": 32,
    "num-clients": 3,
    "clients-per-round": 2,
    "partitioner": "iid",
    "eval-blocks": 512,
    "snapshot-interval": 0,
    "preflight-rounds": 0,
    "save-model": False,
}
TINY: Mapping[str, Value] = {
    **TASK,
    "model": "byte-gpt",
    "task": "language-modelling",
    "dataset": "topics",
    "label-words": "",
    "block-size": 32,
    "zo-batch-size": 4,
    "max-samples": 40,
    "eval-blocks": 16,
}


@dataclass(frozen=True)
class Rule:
    """A method's settings, what one of its rounds costs a site, and who chooses its rate."""

    name: str
    evaluations: int  # of a site in a round
    settings: Mapping[str, Value]
    scales_rate: bool = False  # preflight suggests its learning rate


RULES = (
    Rule(
        "DeComFL: forward, P = 5, SGD",
        6,
        {
            "estimator": "forward",
            "queries": 5,
            "learning-rate": 5e-6,
            "centre-differences": False,
        },
        scales_rate=True,
    ),
    Rule(
        "ours: normalised, q = 16",
        32,
        {"estimator": "two-point", "step": "normalised", "movement": 3e-5, "queries": 16},
    ),
    Rule(
        "two-point, q = 5, SGD",
        10,
        {"estimator": "two-point", "queries": 5, "learning-rate": 5e-6},
        scales_rate=True,
    ),
)


def run(task: StepTask) -> None:
    """Train by every rule to the most evaluations; compare accuracies at equal ones."""
    marks, base = (TINY_MARKS, TINY) if task.tiny else (MARKS, TASK)
    curves: dict[str, list[dict[str, Any]]] = {}
    for number, rule in enumerate(RULES):
        rounds = -(-marks[-1] // rule.evaluations)
        every = max(1, marks[0] // rule.evaluations // 4)
        own = {**base, **rule.settings, "num-rounds": rounds, "eval-interval": every}
        try:
            own |= _scale_rate(task, rule, own)
            folder = train(task, f"learning-{number}", own)
        except ConfigError as error:
            task.skip(rule.name, str(error))
            continue
        curves[rule.name] = _points(folder)
        task.record("curve", {"name": rule.name, "points": curves[rule.name]})
        _report(task, rule, curves[rule.name], marks)
    if len(curves) > 1:
        _compare(task, curves)
        _draw(task, curves)


def _scale_rate(task: StepTask, rule: Rule, settings: Mapping[str, Value]) -> dict[str, Value]:
    """The learning rate that preflight suggests on the device, if the rule has it do so."""
    if not rule.scales_rate:
        return {}
    from server.preflight.judge import preflight
    from shared.training.corpus import Corpus, load_evaluation
    from shared.training.oracle import Oracle
    from shared.training.validate import configure

    config = configure({**settings, "device": task.device})
    oracle = Oracle.of(config)
    rows = load_evaluation(Corpus.of(config, oracle.language_model), oracle.language_model)
    (rates,) = preflight(config, oracle, rows).rates
    task.row(f"learning rate by preflight, {rule.name}", rates.suggested, "")
    return {"learning-rate": rates.suggested}


def _points(folder: Path) -> list[dict[str, Any]]:
    """Evaluations of a run with what they had cost, summed over its sites."""
    from server.ledger.reader import LedgerReader
    from server.ledger.run_folder import LEDGER

    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        return [point._asdict() for point in ledger.cost_points()]


def _score(point: Mapping[str, Any]) -> float:
    """Accuracy, or minus the loss if the task has no classes: more is better."""
    accuracy = point["accuracy"]
    return -float(point["loss"]) if accuracy is None else float(accuracy)


def best_until(points: Sequence[Mapping[str, Any]], evaluations: float) -> float:
    """The best score of the points that cost a site at most so many evaluations."""
    return max(_score(point) for point in points if point["evaluations"] <= evaluations)


def _report(task: StepTask, rule: Rule, points: list[dict[str, Any]], marks: Sequence[int]) -> None:
    for point in points:
        point["evaluations"] = point["round"] * rule.evaluations
    start, seconds = _score(points[0]), points[-1]["seconds"]
    for mark in marks:
        if points[-1]["evaluations"] >= mark - rule.evaluations:
            note = f"{start:.3f} before; {seconds:.0f} s to the end"
            value = best_until(points, mark + rule.evaluations)
            task.row(f"best score to {mark:,} evaluations, {rule.name}", value, "", note=note)
        else:
            reached = points[-1]["evaluations"]
            task.skip(f"{rule.name} to {mark:,} evaluations", f"it reached {reached:,}")


def _compare(task: StepTask, curves: Mapping[str, list[dict[str, Any]]]) -> None:
    """Record the share of the first rule's evaluations by which the second has its best score."""
    first, second = list(curves)[:2]
    target = best_until(curves[first], curves[first][-1]["evaluations"])
    best = next(p["evaluations"] for p in curves[first] if _score(p) == target)
    there = next((p["evaluations"] for p in curves[second] if _score(p) >= target), None)
    what = f"evaluations to the score {target:.3f}: {second}, over {first}"
    if there is None:
        task.skip(what, f"{second} did not reach it")
    else:
        task.row(what, there / max(best, 1), at_most=0.5)


def _draw(task: StepTask, curves: Mapping[str, list[dict[str, Any]]]) -> None:
    """Draw scores over evaluations, bytes and seconds, if matplotlib is there."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        return task.skip("the picture of the curves", str(error))
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = {"evaluations": "evaluations of a site", "payload": "bytes", "seconds": "seconds"}
    for part, (key, title) in zip(figure.subplots(1, 3), axes.items(), strict=True):
        for name, points in curves.items():
            part.plot([p[key] for p in points], [_score(p) for p in points], label=name)
        part.set(xlabel=title, ylabel="score")
    figure.axes[0].legend(frameon=False, fontsize=7)
    figure.savefig(task.file.parent / "learning.png", dpi=120)
    return None
