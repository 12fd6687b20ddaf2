"""Where values are not listed but sought: Optuna proposes them, for each cell of the grid apart.

Akiba et al. 2019, "Optuna", https://arxiv.org/abs/1907.10902. What a trial was given stands in its
configuration file, and what it came to in its run folder: a search that was cut off is rebuilt from
these.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dandelion.sweep.cells import Files
from dandelion.sweep.grid import Cell, known, name_of
from shared.base.errors import ConfigError
from shared.base.options import Value
from shared.training.components import option_of, parse

STARTUP = 4  # trials before any is pruned


@dataclass(frozen=True)
class Range:
    """Numbers between which a setting is sought."""

    key: str
    low: float
    high: float
    log: bool

    def distribution(self) -> Any:  # noqa: ANN401  (Optuna's)
        """As Optuna takes it: whole numbers for settings that are whole."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if option_of(self.key).kind is int:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


def ranges_of(texts: Sequence[str]) -> list[Range]:
    """Read ``key=low..high`` or ``key=low..high:log``.

    Raises:
        ConfigError: not of this form, not a number's key, or nothing between the ends.
    """
    found = []
    for text in texts:
        key, _, span = text.partition("=")
        low, dots, high = span.removesuffix(":log").partition("..")
        key, log = key.strip(), span.endswith(":log")
        if not dots:
            raise ConfigError(f"--search key=low..high or key=low..high:log expected, got {text!r}")
        key = known(key, "--search", text)
        ends = parse(key, low), parse(key, high)
        if not all(isinstance(e, int | float) and not isinstance(e, bool) for e in ends):
            raise ConfigError(f"--search {text!r}: {key} is not a number; list it with --grid")
        if not float(ends[0]) < float(ends[1]) or (log and float(ends[0]) <= 0):
            raise ConfigError(f"--search {text!r}: rising ends expected, above 0 for log")
        found.append(Range(key, float(ends[0]), float(ends[1]), log))
    return found


@dataclass
class _Search:
    """The study of one cell of the grid."""

    cell: Cell
    study: Any
    begun: int = 0
    asked: dict[str, Any] = field(default_factory=dict)  # name of a trial to Optuna's


@dataclass
class Searched:
    """A source of cells (``runner.Source``): trials of every grid cell in turn."""

    folder: Path
    cells: Sequence[Cell]
    ranges: Sequence[Range]
    trials: int
    seed: int

    def __post_init__(self) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError("--search needs Optuna: pip install 'dandelion[search]'") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._searches = [
            _Search(
                cell,
                optuna.create_study(
                    direction="minimize",
                    sampler=optuna.samplers.TPESampler(seed=self.seed + number),
                    pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
                ),
            )
            for number, cell in enumerate(self.cells)
        ]
        self.begun: list[Cell] = []

    def next(self) -> Cell | None:
        """A trial of the search that has had fewest."""
        search = min(self._searches, key=lambda each: each.begun)
        if search.begun >= self.trials:
            return None
        search.begun += 1
        stem = name_of(search.cell.settings) + "," if search.cell.settings else ""
        name = f"{stem}trial={search.begun:03d}"
        if given := self._given(name):
            search.study.enqueue_trial(given)
        trial = search.study.ask({r.key: r.distribution() for r in self.ranges})
        search.asked[name] = trial
        cell = Cell(name, {**search.cell.settings, **trial.params})
        self.begun.append(cell)
        return cell

    def hopeless(self, cell: Cell) -> str:
        """Ask the pruner, with the newest evaluation of a running trial."""
        search, trial = self._of(cell)
        _, _, evaluations = Files(self.folder, cell.name).progress()
        if not evaluations:
            return ""
        round_, loss = evaluations[-1]
        reported = trial.storage.get_trial(trial._trial_id).intermediate_values
        if round_ not in reported:
            trial.report(loss, round_)
        if len(search.study.trials) > STARTUP and trial.should_prune():
            return f"held-out loss {loss:.4f} in round {round_} is above the others' median"
        return ""

    def told(self, cell: Cell) -> None:
        """Tell the study the last evaluation of a trial, or that it failed or was pruned."""
        from optuna.trial import TrialState

        search, trial = self._of(cell)
        files = Files(self.folder, cell.name)
        _, _, evaluations = files.progress()
        state = files.state()
        if state == "done" and evaluations:
            search.study.tell(trial, evaluations[-1][1])
        else:
            pruned = state == "pruned" and evaluations
            search.study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)

    def _of(self, cell: Cell) -> tuple[_Search, Any]:
        search = next(each for each in self._searches if cell.name in each.asked)
        return search, search.asked[cell.name]

    def _given(self, name: str) -> Mapping[str, Value]:
        """What a trial of this name was given before the search was cut off."""
        file = Files(self.folder, name).config
        if not file.exists():
            return {}
        values = tomllib.loads(file.read_text())
        return {r.key: values[r.key] for r in self.ranges}
