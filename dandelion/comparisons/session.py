"""A comparison from its settings to its files: table, interactive page and pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dandelion.comparisons.methods import MethodSetting, Settings, configure_methods, rows_of
from dandelion.comparisons.presentation import draw, page
from dandelion.comparisons.runner import COMPARISON_FILE, Budget, compare
from dandelion.settings.gather import check_sites
from shared.base.errors import ConfigError
from shared.base.files import write_atomically
from shared.config.schema import Config

MOST_ROUNDS = 1_000_000  # more than any budget allows
PAGE_FILE = "comparison.html"


@dataclass(frozen=True)
class ComparisonPlan:
    """What is compared, up to which loss and at which cost."""

    methods: Sequence[str] = ()
    suite: str = ""  # of methods, in place of their names
    target_loss: float | None = None  # None: the lowest that every method reached
    budget: Budget = field(default_factory=Budget)  # of each method
    rates: int = 3  # learning rates that each method is tried at
    name: str = ""  # of the folder; empty: it contains the time


def run_comparison(
    plan: ComparisonPlan, given: Sequence[MethodSetting], say: Callable[[str], None]
) -> tuple[dict[str, Any], list[Path]]:
    """Train every method of a plan; return the comparison, and the files that were written.

    Args:
        plan: of the comparison.
        given: settings of all methods, or of one; ``output-dir`` is the parent of the folder.
        say: prints a line of progress.

    Raises:
        ConfigError: the folder exists, or a configuration cannot be run.
        StalledError: a method ended at none of its rates.
    """
    folder = choose_folder(plan, given)
    base: dict[str, Any] = {"save-model": False}
    if plan.budget.seconds or plan.budget.forwards:  # the budget alone ends a method
        base |= {"num-rounds": MOST_ROUNDS, "preflight-rounds": 0}
    others = [each for each in given if each[1] != "output-dir"]
    configs = _configure(plan, [*others, ("", "output-dir", str(folder))], base)
    if plan.rates > 1:
        runs = plan.rates * len(configs)
        say(f"{len(configs)} methods at {plan.rates} learning rates each: {runs} runs")
    comparison = compare(configs, folder, plan.target_loss, plan.budget, say, plan.rates)
    write_atomically(folder / PAGE_FILE, page(comparison).encode())
    return comparison, [folder / COMPARISON_FILE, folder / PAGE_FILE, *draw(comparison, folder)]


def choose_folder(plan: ComparisonPlan, given: Sequence[MethodSetting]) -> Path:
    """The absolute path of a new comparison's folder.

    Raises:
        ConfigError: it exists.
    """
    parent = next((str(value) for _, key, value in given if key == "output-dir"), "runs")
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = plan.name or f"compare-{plan.suite or 'methods'}-{stamp}"
    folder = Path(parent, name).expanduser().resolve()
    if folder.exists():
        raise ConfigError(f"{folder} exists already; choose another --name")
    return folder


def _configure(
    plan: ComparisonPlan, given: Sequence[MethodSetting], base: Settings
) -> dict[str, Config]:
    configs = configure_methods(rows_of(plan.methods, plan.suite), given, base)
    for config in configs.values():
        _check(config)
    return configs


def _check(config: Config) -> None:
    """Refuse a configuration that cannot be compared.

    Raises:
        ConfigError: an unknown model, too few sites, or a schedule without a number of rounds.
    """
    from shared.models.load import check_name

    check_name(config.model.name)
    check_sites(config)
    if config.training.rounds == MOST_ROUNDS and config.optimizer.schedule != "constant":
        raise ConfigError(
            f"lr-schedule {config.optimizer.schedule!r} with a budget: it falls towards the last "
            "round, so set num-rounds as well"
        )
