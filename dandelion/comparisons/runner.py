"""Runs the methods one after the other from the same start, and writes ``comparison.json``."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dandelion.comparisons.curves import (
    AXES,
    CurvePoint,
    best_run,
    common_target,
    find_first_at,
    is_settled,
    points_of,
    verdicts,
)
from dandelion.comparisons.memory import client_memory
from dandelion.comparisons.methods import FIRST_ORDER, rates_around
from dandelion.comparisons.presentation import rate_text
from dandelion.engines.local import run_local
from server.reporting.report import Report
from shared.base.errors import StalledError
from shared.base.files import write_atomically
from shared.config.schema import Config
from shared.modes.step_rule import rate_set
from shared.problem.source import source_digest

COMPARISON_FILE = "comparison.json"


@dataclass(frozen=True)
class Budget:
    """When a method stops, after a whole round; 0 means no limit."""

    seconds: float = 0.0
    forwards: float = 0.0  # per client

    def is_spent(self, report: Report) -> bool:
        """Whether a run has used up its budget."""
        totals = report.ledger.totals()
        each = totals.forwards / (totals.clients or 1)
        return 0 < self.seconds <= totals.seconds or 0 < self.forwards <= each


class SpentError(Exception):
    """The budget is spent; raised within a run to stop it after a round."""


def run_method(
    config: Config,
    budget: Budget,
    say: Callable[[str], None],
    watch: Callable[[Report, int], None] = lambda report, round_: None,
) -> Path:
    """Train one method to its last round or until its budget is spent; return the run folder.

    ``watch`` is called after every round, with 0 before the first.
    """
    last = 0

    def on_round(report: Report, round_: int) -> None:
        nonlocal last
        last = round_
        watch(report, round_)
        if round_ and budget.is_spent(report):
            raise SpentError

    try:
        return run_local(config, on_round)
    except SpentError:
        folder = Path(config.run.output_dir, config.run.name)
        say(f"{config.run.name}: budget spent in round {last}")
        values = {"num-rounds": last, "resume": str(folder.resolve())}
        return run_local(Config(config.to_run_config() | values))


@dataclass(frozen=True)
class MethodRun:
    """A method at one learning rate: its settings, its folder and its curve."""

    config: Config
    folder: Path
    points: list[CurvePoint]

    def row(self) -> dict[str, Any]:
        """What is said of a rate that was tried."""
        last = self.points[-1]
        return {
            "learning_rate": rate_set(self.config),
            "final_loss": last.loss,
            "settled": is_settled(self.points),
            "forwards": last.forwards,
            "seconds": last.seconds,
            "run": self.folder.name,
        }


def compare(
    configs: Mapping[str, Config],
    folder: Path,
    target: float | None,
    budget: Budget,
    say: Callable[[str], None],
    rates: int = 1,
) -> dict[str, Any]:
    """Run every method at some rates, write ``comparison.json`` into ``folder``, and return it.

    Args:
        configs: by name of the method.
        folder: of the comparison.
        target: the loss to which costs are counted; None: the lowest that every method reached.
        budget: of each method, at each rate.
        say: prints a line of progress.
        rates: how many learning rates each method is tried at; the best one counts.

    Raises:
        StalledError: a method ended at none of its rates.
    """
    tried: dict[str, list[MethodRun]] = {}
    memory: dict[str, tuple[int, int] | None] = {}
    for name, config in configs.items():
        say(f"{name} …")
        memory[name] = client_memory(config)
        tried[name] = _try_rates(rates_around(config, rates), budget, say)
    best = {name: runs[best_run([run.points for run in runs])] for name, runs in tried.items()}
    curves = [run.points for run in best.values()]
    loss = common_target(curves) if target is None else target
    rows = [_row(name, best[name], tried[name], loss, memory[name]) for name in configs]
    comparison = {
        "about": _about(configs, budget, rates),
        "target_loss": loss,
        "target_given": target is not None,
        "axes": AXES,
        "budget": asdict(budget),
        "verdicts": verdicts(rows, loss),
        "methods": rows,
    }
    text = json.dumps(comparison, indent=1, ensure_ascii=False, allow_nan=True)
    write_atomically(folder / COMPARISON_FILE, text.encode())
    return comparison


def _try_rates(
    configs: Mapping[str, Config], budget: Budget, say: Callable[[str], None]
) -> list[MethodRun]:
    runs, failure = list[MethodRun](), StalledError("no rate to try")
    for name, config in configs.items():
        try:
            folder = run_method(config, budget, say)
        except StalledError as error:
            say(f"{name}: {error}")
            failure = error
            continue
        runs.append(MethodRun(config, folder, points_of(folder)))
        if len(configs) > 1:
            row = runs[-1].row()
            say(f"  rate {rate_text(row['learning_rate'])}: loss {row['final_loss']:.4f}, "
                f"{row['forwards']:,.0f} forward passes, {row['seconds']:.1f} s")  # fmt: skip
    if not runs:
        raise failure
    return runs


def _about(configs: Mapping[str, Config], budget: Budget, rates: int) -> dict[str, str]:
    """What was compared, on what, with which budget and code, and when."""
    config = next(iter(configs.values()))
    digest = source_digest(config.model.app, config.run.app_dir)
    limits = {"s": budget.seconds, "forward passes per client": budget.forwards}
    spent = [f"{limit:,g} {unit}" for unit, limit in limits.items() if limit]
    return {
        "model": config.model.app or config.model.name,
        "data": config.model.app or f"{config.data.dataset}, {config.data.task}",
        "sites": f"{config.federation.num_clients:,}, {config.data.partitioner}",
        "budget": " or ".join(spent) or f"{config.training.rounds:,} rounds",
        "rates": f"the best of {rates} for each method" if rates > 1 else "as given",
        "seed": str(config.training.seed),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": f"dandelion {version('dandelion')}, source files {digest.hex()}",
    }


def _row(
    name: str,
    best: MethodRun,
    tried: Sequence[MethodRun],
    loss: float,
    memory: tuple[int, int] | None,
) -> dict[str, Any]:
    config, points = best.config, best.points
    at = find_first_at(points, loss)
    summary = json.loads((best.folder / "summary.json").read_text())
    default = Config().to_run_config()
    settings = {k: v for k, v in config.to_run_config().items() if v != default.get(k)}
    return {
        "name": name,
        "first_order": name in FIRST_ORDER,
        "settings": settings,
        "run": best.folder.name,
        "learning_rate": rate_set(config),
        "rates": [run.row() for run in tried],
        "settled": is_settled(points),
        "digest": summary["digest"],
        "parameters": summary["parameters"],
        "final_loss": points[-1].loss,
        "best_loss": min(point.loss for point in points),
        "totals": {axis: getattr(points[-1], axis) for axis in AXES},
        "to_target": {axis: getattr(at, axis) for axis in AXES} if at else None,
        "peak_memory_bytes": memory[0] if memory else None,
        "round_memory_bytes": memory[1] if memory else None,
        "points": [asdict(point) for point in points],
    }
