"""Run the methods one after the other, from the same start, and write down what came of each."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dandelion.compare.curves import AXES, Point, common_target, points_of, reached
from dandelion.compare.memory import client_memory
from dandelion.compare.methods import FIRST_ORDER
from dandelion.engines.local import run_local
from server.reporting.report import Report
from shared.config.schema import Config
from shared.replica.snapshot import write_atomically

FILE = "comparison.json"


@dataclass(frozen=True)
class Budget:
    """Where each method stops; 0: not there. It then stands at its last round, whole."""

    seconds: float = 0.0
    forwards: float = 0.0  # per client

    def spent(self, report: Report) -> bool:
        """Whether a run has used what it may."""
        seconds, forwards, clients = report.ledger.rows(
            "SELECT coalesce(sum(seconds), 0), coalesce(sum(forwards), 0), max(clients) "
            "FROM metrics"
        )[0]
        each = forwards / (clients or 1)
        return bool(0 < self.seconds <= seconds or 0 < self.forwards <= each)


class SpentError(Exception):
    """Raised within a run to stop it after a round."""


def run_method(config: Config, budget: Budget, say: Callable[[str], None]) -> Path:
    """Train one method until its rounds are done or its budget is spent; return the run folder."""
    last = 0

    def on_round(report: Report, round_: int) -> None:
        nonlocal last
        last = round_
        if round_ and budget.spent(report):
            raise SpentError

    try:
        return run_local(config, on_round)
    except SpentError:
        folder = Path(config.output_dir, config.run_name)
        say(f"{config.run_name}: budget spent in round {last}")
        values = {"num-rounds": last, "resume": str(folder.resolve())}
        return run_local(Config(config.to_run_config() | values))


def compare(
    configs: Mapping[str, Config],
    folder: Path,
    target: float | None,
    budget: Budget,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run every method and write ``comparison.json`` into ``folder``; return what it says."""
    found: dict[str, list[Point]] = {}
    memory: dict[str, tuple[int, int] | None] = {}
    folders: dict[str, Path] = {}
    for name, config in configs.items():
        say(f"{name} …")
        memory[name] = client_memory(config)
        folders[name] = run_method(config, budget, say)
        found[name] = points_of(folders[name])
    loss = common_target(list(found.values())) if target is None else target
    rows = [_row(name, configs[name], found[name], loss, memory[name], folders[name])
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
    write_atomically(folder / FILE, text.encode())
    return comparison


def _row(
    name: str,
    config: Config,
    points: list[Point],
    loss: float,
    memory: tuple[int, int] | None,
    folder: Path,
) -> dict[str, Any]:
    at = reached(points, loss)
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


def verdicts(rows: list[dict[str, Any]], loss: float) -> list[str]:
    """Who reached the target at the least cost on each axis; where first-order methods won, first.

    A method that never came to the target is named.
    """
    there = [row for row in rows if row["to_target"]]
    won: list[tuple[bool, str]] = []
    for axis, title in AXES.items() if there else []:
        best = min(there, key=lambda row: (row["to_target"][axis], row["name"]))
        cost = f"{best['to_target'][axis]:,.4g}"
        won.append(
            (
                best["first_order"],
                f"fewest {title} to a loss of {loss:.3f}: {best['name']} ({cost})",
            )
        )
    said = [text for _, text in sorted(won, key=lambda pair: not pair[0])]
    late = [row["name"] for row in rows if not row["to_target"]]
    return said + [f"{name} never reached a loss of {loss:.3f}" for name in late]
