"""Search of settings with Optuna: one study for each cell of the grid proposes trials.

Akiba et al. 2019, "Optuna", https://arxiv.org/abs/1907.10902. A trial's settings are in its
configuration file and its result is in its run folder. An interrupted search is rebuilt from these.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dandelion.sweeps.cells import CellFiles
from dandelion.sweeps.grid import Cell, check_key
from shared.base.errors import ConfigError
from shared.base.extras import import_extra
from shared.base.options import Value
from shared.training.components import option_of, parse

STARTUP_TRIALS = 4  # none of these is pruned


@dataclass(frozen=True)
class Range:
    """An interval in which a setting is searched."""

    key: str
    low: float
    high: float
    log: bool

    def distribution(self) -> Any:  # noqa: ANN401  (Optuna's)
        """Optuna's distribution: of integers if the setting is an integer."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if option_of(self.key).kind is int:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


def ranges_of(texts: Sequence[str]) -> list[Range]:
    """Read ``key=low..high`` or ``key=low..high:log``.

    Raises:
        ConfigError: not of this form, not the key of a number, or an empty interval.
    """
    ranges = []
    for text in texts:
        key, _, span = text.partition("=")
        low, dots, high = span.removesuffix(":log").partition("..")
        key, log = key.strip(), span.endswith(":log")
        if not dots:
            raise ConfigError(f"--search key=low..high or key=low..high:log expected, got {text!r}")
        key = check_key(key, "--search", text)
        ends = parse(key, low), parse(key, high)
        if not all(isinstance(e, int | float) and not isinstance(e, bool) for e in ends):
            raise ConfigError(f"--search {text!r}: {key} is not a number; list it with --grid")
        if not float(ends[0]) < float(ends[1]) or (log and float(ends[0]) <= 0):
            raise ConfigError(f"--search {text!r}: rising ends expected, above 0 for log")
        ranges.append(Range(key, float(ends[0]), float(ends[1]), log))
    return ranges


@dataclass
class _Search:
    """The study of one cell of the grid, and its trials."""

    cell: Cell
    study: Any
    begun: int = 0  # trials
    proposed: dict[str, Any] = field(default_factory=dict)  # Optuna's trials by our names


@dataclass
class SearchedCells:
    """A source of cells (``runner.CellSource``): the trials of every grid cell in turn.

    Args:
        folder: of the sweep; earlier trials are read from it.
        cells: of the grid; each gets a study.
        ranges: of the settings that are searched.
        trials: of each study.
        seed: of the samplers; that of study k is ``seed`` + k.

    Raises:
        ConfigError: Optuna is not installed.
    """

    folder: Path
    cells: Sequence[Cell]
    ranges: Sequence[Range]
    trials: int
    seed: int

    def __post_init__(self) -> None:
        optuna = import_extra("search", "--search", "optuna")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._searches = [
            _Search(
                cell,
                optuna.create_study(
                    direction="minimize",
                    sampler=optuna.samplers.TPESampler(seed=self.seed + number),
                    pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
                ),
            )
            for number, cell in enumerate(self.cells)
        ]
        self.begun: list[Cell] = []

    def next(self) -> Cell | None:
        """A new trial of the study that has had the fewest."""
        search = min(self._searches, key=lambda each: each.begun)
        if search.begun >= self.trials:
            return None
        search.begun += 1
        stem = f"{search.cell.name}," if search.cell.settings else ""
        name = f"{stem}trial={search.begun:03d}"
        if settings := self._read_settings(name):
            search.study.enqueue_trial(settings)
        trial = search.study.ask({r.key: r.distribution() for r in self.ranges})
        search.proposed[name] = trial
        cell = Cell(name, {**search.cell.settings, **trial.params})
        self.begun.append(cell)
        return cell

    def find_prune_reason(self, cell: Cell) -> str:
        """Report a trial's newest evaluation to the pruner, and return its reason to stop it."""
        search, trial = self._of(cell)
        _, _, evaluations = CellFiles(self.folder, cell.name).progress()
        if not evaluations:
            return ""
        round_, loss = evaluations[-1]
        reported = trial.storage.get_trial(trial._trial_id).intermediate_values
        if round_ not in reported:
            trial.report(loss, round_)
        if len(search.study.trials) > STARTUP_TRIALS and trial.should_prune():
            return f"held-out loss {loss:.4f} in round {round_} is above the others' median"
        return ""

    def record_end(self, cell: Cell) -> None:
        """Report a trial's last evaluation to its study, or that it failed or was pruned."""
        from optuna.trial import TrialState

        search, trial = self._of(cell)
        files = CellFiles(self.folder, cell.name)
        _, _, evaluations = files.progress()
        state = files.state()
        if state == "done" and evaluations:
            search.study.tell(trial, evaluations[-1][1])
        else:
            pruned = state == "pruned" and evaluations
            search.study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)

    def _of(self, cell: Cell) -> tuple[_Search, Any]:
        search = next(each for each in self._searches if cell.name in each.proposed)
        return search, search.proposed[cell.name]

    def _read_settings(self, name: str) -> Mapping[str, Value]:
        """The settings of a trial that was begun before the search was interrupted, or none."""
        file = CellFiles(self.folder, name).config
        if not file.exists():
            return {}
        values = tomllib.loads(file.read_text())
        return {r.key: values[r.key] for r in self.ranges}
