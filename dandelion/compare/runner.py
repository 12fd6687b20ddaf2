"""Runs the methods one after the other from the same start, and writes ``comparison.json``."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dandelion.compare.curves import (
    AXES,
    CurvePoint,
    common_target,
    find_first_at,
    points_of,
    verdicts,
)
from dandelion.compare.memory import client_memory
from dandelion.compare.methods import FIRST_ORDER
from dandelion.engines.local import run_local
from server.reporting.report import Report
from shared.base.files import write_atomically
from shared.config.schema import Config

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


def run_method(config: Config, budget: Budget, say: Callable[[str], None]) -> Path:
    """Train one method to its last round or until its budget is spent; return the run folder."""
    last = 0

    def on_round(report: Report, round_: int) -> None:
        nonlocal last
        last = round_
        if round_ and budget.is_spent(report):
            raise SpentError

    try:
        return run_local(config, on_round)
    except SpentError:
        folder = Path(config.run.output_dir, config.run.name)
        say(f"{config.run.name}: budget spent in round {last}")
        values = {"num-rounds": last, "resume": str(folder.resolve())}
        return run_local(Config(config.to_run_config() | values))


def compare(
    configs: Mapping[str, Config],
    folder: Path,
    target: float | None,
    budget: Budget,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run every method, write ``comparison.json`` into ``folder``, and return its content.

    Args:
        configs: by name of the method.
        folder: of the comparison.
        target: the loss to which costs are counted; None: the lowest that every method reached.
        budget: of each method.
        say: prints a line of progress.
    """
    curves: dict[str, list[CurvePoint]] = {}
    memory: dict[str, tuple[int, int] | None] = {}
    folders: dict[str, Path] = {}
    for name, config in configs.items():
        say(f"{name} …")
        memory[name] = client_memory(config)
        folders[name] = run_method(config, budget, say)
        curves[name] = points_of(folders[name])
    loss = common_target(list(curves.values())) if target is None else target
    rows = [_row(name, configs[name], curves[name], loss, memory[name], folders[name])
            for name in configs]  # fmt: skip
    comparison = {
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


def _row(
    name: str,
    config: Config,
    points: list[CurvePoint],
    loss: float,
    memory: tuple[int, int] | None,
    folder: Path,
) -> dict[str, Any]:
    at = find_first_at(points, loss)
    summary = json.loads((folder / "summary.json").read_text())
    default = Config().to_run_config()
    settings = {k: v for k, v in config.to_run_config().items() if v != default.get(k)}
    return {
        "name": name,
        "first_order": name in FIRST_ORDER,
        "settings": settings,
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
