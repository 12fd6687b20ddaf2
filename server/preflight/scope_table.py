"""Scopes side by side: what each would bring in equal time, and which one to train.

A scope is a candidate if model and task have it. The one that is named has the largest fall of
held-out loss; of several that cannot be told apart it is the one with the fewest numbers.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from server.preflight.judge import finite
from server.preflight.scope_trial import ScopeRow, ScopeTrial
from shared.base.errors import ConfigError
from shared.base.files import write_atomically
from shared.base.options import Value
from shared.config.schema import Config
from shared.training.corpus import Corpus, load_evaluation
from shared.training.oracle import Oracle
from shared.training.server_choices import resolve_choices
from shared.training.validate import validate

SCOPES_FILE = "scopes.json"
FEWEST_ROWS = 8  # held-out examples: half of them are trained on, half of them judge
Settings = Mapping[str, Value]
PLAIN: Settings = {"features": "", "objective": "loss", "optimizer": "sgd"}
CANDIDATES: tuple[Settings, ...] = (  # fewest numbers first
    {"scope": "prior"},
    {"scope": "words", "features": "last"},
    {"scope": "words", "features": "mean"},
    {"scope": "head", "features": "mean"},
    {"scope": "head", "features": "first"},
    {"scope": "last:2:bias"},
    {"scope": "bias"},
    {"scope": "lora", "lora-rank": 1},
    {"scope": "head"},
    {"scope": "mask:0.1:last:2"},
    {"scope": "last:2"},
    {"scope": "mask:0.1"},
    {"scope": "full"},
)


@dataclass(frozen=True)
class ScopeTable:
    """Scopes that were tried, those that do not fit, and the one to train."""

    rows: tuple[ScopeRow, ...]
    refused: Mapping[str, str]  # name of a candidate to the reason
    rounds: int  # of the run
    examples: int  # of a site

    @property
    def best(self) -> ScopeRow | None:
        """The scope to train; None if none brings more than chance."""
        paying = [row for row in self.rows if row.pays]
        if not paying:
            return None
        most = max(paying, key=lambda row: row.gain)
        near = (row for row in paying if row.gain >= most.gain - row.gain_error)
        return min(near, key=lambda row: row.parameters)

    def minutes(self, row: ScopeRow) -> float:
        """Minutes that a run takes one site on this machine: what is kept, then its rounds."""
        each = row.seconds / row.rounds if row.rounds else 0.0
        return (row.preparation * self.examples + self.rounds * each) / 60

    def to_json(self) -> str:
        """All of it as JSON; numbers that are not finite are null."""
        rows = [asdict(row) | {"pays": row.pays, "minutes": self.minutes(row)} for row in self.rows]
        best = self.best
        values = {
            "scopes": rows,
            "refused": dict(self.refused),
            "best": None if best is None else best.settings,
        }
        return json.dumps(finite(values), indent=1, ensure_ascii=False, allow_nan=False)

    def write(self, folder: Path) -> Path:
        """Write ``scopes.json`` into a folder and return its path."""
        write_atomically(folder / SCOPES_FILE, self.to_json().encode())
        return folder / SCOPES_FILE


def name_of(settings: Settings) -> str:
    """A candidate's settings in a word, such as ``words last``."""
    return " ".join(str(settings[key]) for key in settings if key != "lora-rank")


def compare_scopes(
    config: Config, seconds: float, say: Callable[[str], None] = lambda _: None
) -> ScopeTable:
    """Train each candidate for some seconds on the server's held-out examples, and judge it.

    Args:
        config: of the run; its scope, features, objective and optimizer are not used.
        seconds: of the rounds of each; what is kept of the examples is computed before.
        say: prints a line of progress.

    Raises:
        ConfigError: there are too few held-out examples, or no candidate fits.
    """
    rows, refused, examples = list[ScopeRow](), dict[str, str](), 0
    for name, chosen in _candidates(config, refused):
        try:
            trial, examples = _trial(chosen)
        except ConfigError as error:
            refused[name] = str(error)
            continue
        say(f"{name}: {seconds:g} s of trial rounds")
        settings = {key: chosen.to_run_config()[key] for key in _keys(name)}
        rows.append(replace(trial.run(seconds), scope=name, settings=settings))
    if not rows:
        raise ConfigError(f"preflight: no scope fits model and task: {refused}")
    return ScopeTable(tuple(rows), refused, config.training.rounds, examples)


def _keys(name: str) -> Iterator[str]:
    candidate = next(each for each in CANDIDATES if name_of(each) == name)
    return iter(candidate)


def _candidates(config: Config, refused: dict[str, str]) -> Iterator[tuple[str, Config]]:
    """Each candidate's valid configuration; reasons of the others are put into ``refused``."""
    for settings in CANDIDATES:
        try:
            chosen = validate(config.replace(**_words({**PLAIN, "step": "plain", **settings})))
        except ConfigError as error:
            refused[name_of(settings)] = str(error)
            continue
        yield name_of(settings), chosen


def _words(settings: Settings) -> dict[str, Value]:
    return {key.replace("-", "_"): value for key, value in settings.items()}


def _trial(config: Config) -> tuple[ScopeTrial, int]:
    """A candidate's trial, and how many examples a site of the run has."""
    config = resolve_choices(config)
    oracle = Oracle.of(config)
    corpus = Corpus.of(config, oracle.language_model)
    rows = load_evaluation(corpus, oracle.language_model)
    if len(rows) < FEWEST_ROWS:
        raise ConfigError(
            f"preflight of scopes: {FEWEST_ROWS} held-out examples or more expected, got "
            f"{len(rows)}; raise eval-blocks"
        )
    return ScopeTrial.of(config, oracle, rows), len(
        corpus.training
    ) // config.federation.num_clients
