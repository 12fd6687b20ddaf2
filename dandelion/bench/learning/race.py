"""Runs every method on a problem at equal evaluations: five rates once, the best more often."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from dandelion.bench.learning import seed_pool
from dandelion.bench.learning.linear_probe import probe_points
from dandelion.bench.learning.methods import (
    FACTORS,
    PEERS,
    PROBE,
    PROBE_SOURCE,
    Method,
    Settings,
    own_methods,
)
from dandelion.bench.learning.problems import COMMON, RaceTask
from dandelion.bench.learning.race_points import RaceCurve, RacePoint, race_points
from dandelion.comparisons.runner import Budget, run_method
from dandelion.engines.local import run_local
from server.ledger.reader import LedgerReader
from server.ledger.run_folder import LEDGER, read_config
from server.reporting.report import Report
from shared.base.errors import StalledError, UnknownNameError
from shared.config.schema import Config
from shared.modes.batches import EPOCHS
from shared.modes.estimators import cost, with_estimator
from shared.modes.mode import plan_of
from shared.training.oracle import Oracle
from shared.training.server_choices import resolve_choices
from shared.training.site_data import SiteData
from shared.training.validate import configure

EVALUATIONS_OF_A_CURVE = 20
TYPICAL_ROUND = 2  # round 1 may be special


@dataclass(frozen=True)
class Trial:
    """How much is tried: all that the command's options say."""

    folder: Path
    seeds: int = 3
    minutes: float = 0.0  # per problem; 0: until the evaluations are spent
    factors: Sequence[float] = FACTORS
    methods: Sequence[str] = ()  # those that are raced; none: all
    evaluations: int = 0  # per site; 0: as many as the problem says
    more: Settings = field(default_factory=dict)  # settings that win over all others

    def budget_of(self, problem: RaceTask) -> int:
        """Evaluations of each method on a problem."""
        return self.evaluations or problem.evaluations


def methods_of(problem: RaceTask, names: Sequence[str] = ()) -> list[Method]:
    """Peers' methods that fit a problem, and ours; some of them if they are named.

    Raises:
        UnknownNameError: no method of the problem has the name.
    """
    peers = [method for method in PEERS if method.name not in problem.without]
    methods = {method.name: method for method in [*peers, *own_methods(problem.own)]}
    if unknown := [name for name in names if name not in methods]:
        raise UnknownNameError(f"method of {problem.name}", unknown[0], methods)
    return [methods[name] for name in names or methods]


def configuration(
    problem: RaceTask, method: Method, rate: float | None, seed: int, trial: Trial
) -> Config:
    """The run of a method at a rate: as many rounds as the problem's evaluations allow.

    Raises:
        ConfigError: settings that cannot work together.
    """
    settings = {
        **COMMON,
        **problem.settings,
        **method.settings,
        **problem.published.get(method.name, {}),
        **({method.rate: rate} if rate is not None else {}),
        **trial.more,
        "seed": seed,
        "output-dir": str(trial.folder / problem.name / _slug(method.name)),
        "run-name": f"{rate if rate is not None else 'auto'}-seed-{seed}",
    }
    if problem.start:
        settings["init-from"] = str(trial.folder / problem.name / "base")
    config = configure(settings)
    each = cost(config, plan_of(config, TYPICAL_ROUND), _batch(config))
    rounds = max(1, round(trial.budget_of(problem) / each))
    every = trial.more.get("eval-interval", max(1, rounds // EVALUATIONS_OF_A_CURVE))
    return config.replace(num_rounds=rounds, eval_interval=every)


def race(problem: RaceTask, trial: Trial, say: Callable[[str], None]) -> list[RaceCurve]:
    """All curves of a problem: the linear probe, then each method at its rates and seeds.

    Args:
        problem: what is learned.
        trial: how much of it.
        say: prints a line of progress.
    """
    problem.install()
    seed_pool.register()
    methods, curves = methods_of(problem, trial.methods), list[RaceCurve]()
    for method in methods:  # so that a wrong setting is refused before hours are spent
        rate = problem.rates[method.name] if method.rate else None
        configuration(problem, method, rate, 1, trial)
    _train_start(problem, trial)
    for seed in range(1, trial.seeds + 1):
        config = configuration(problem, Method(PROBE, "", {}, rate=""), None, seed, trial)
        read = config.federation.num_clients * _batch(config) * trial.budget_of(problem)
        points = probe_points(resolve_choices(config), read)
        curves.append(RaceCurve(PROBE, PROBE_SOURCE, None, seed, points))
    return curves + search_all(problem, methods, trial, say, lambda curve: curve.final)


def search_all(
    problem: RaceTask,
    methods: Sequence[Method],
    trial: Trial,
    say: Callable[[str], None],
    outcome: Callable[[RaceCurve], float],
) -> list[RaceCurve]:
    """Each method at its rates and seeds; ``outcome`` of a curve is said when it is there."""
    curves, left = list[RaceCurve](), MinuteBudget.of(trial, methods)
    for method in methods:
        for curve in _search(problem, method, trial, left, say):
            say(f"{problem.name}: {method.name} at {curve.rate}, seed {curve.seed}: "
                f"{outcome(curve):.4f} {curve.note}")  # fmt: skip
            curves.append(curve)
    return curves


@dataclass
class MinuteBudget:
    """Divides the minutes that are left over the runs that are left."""

    end: float  # time.monotonic(); 0: no end
    left: int  # runs

    @classmethod
    def of(cls, trial: Trial, methods: Iterable[Method]) -> "MinuteBudget":
        """Time that starts now."""
        runs = sum((len(trial.factors) if m.rate else 1) + trial.seeds - 1 for m in methods)
        return cls(time.monotonic() + 60 * trial.minutes if trial.minutes else 0.0, runs)

    def budget(self) -> Budget:
        """What the next run may take; at least a second."""
        seconds = max(1.0, self.end - time.monotonic()) / max(1, self.left) if self.end else 0.0
        self.left -= 1
        return Budget(seconds=seconds)


def _search(
    problem: RaceTask,
    method: Method,
    trial: Trial,
    left: MinuteBudget,
    say: Callable[[str], None],
) -> Iterator[RaceCurve]:
    """Each rate with seed 1, then the best one with the other seeds."""
    rates: list[float | None] = [None]
    if method.rate:
        rates = [problem.rates[method.name] * factor for factor in trial.factors]
    curves = []
    for rate in rates:
        config = configuration(problem, method, rate, 1, trial)
        curves.append(_run(config, method, rate, left.budget(), say))
        yield curves[-1]
    best = min(curves, key=lambda curve: curve.final).rate
    for seed in range(2, trial.seeds + 1):
        config = configuration(problem, method, best, seed, trial)
        yield _run(config, method, best, left.budget(), say)


def _run(
    config: Config,
    method: Method,
    rate: float | None,
    budget: Budget,
    say: Callable[[str], None],
) -> RaceCurve:
    """One run to its last round, from where its folder left it."""
    folder, note, spent = Path(config.run.output_dir, config.run.name), "", list[str]()

    def say_score(report: Report, round_: int) -> None:
        if round_ % config.evaluation.interval == 0:
            say(f"{method.name} at {rate}: {_score(report.ledger, round_)}")

    try:
        run_method(go_on(config), budget, spent.append, say_score)
        note = "; ".join(spent)
    except StalledError as error:
        note = f"diverged: {error}"
    points, rewinds = list[RacePoint](), 0
    if (folder / LEDGER).exists():
        points = race_points(folder, _batch(config))
        with closing(LedgerReader.open(folder / LEDGER)) as ledger:
            rewinds = len(ledger.rewinds())
    if note.startswith("diverged") and points:
        points[-1] = type(points[-1])(**{**vars(points[-1]), "loss": float("inf")})
    seed = config.training.seed
    return RaceCurve(method.name, method.source, rate, seed, points, note, rewinds)


def go_on(config: Config) -> Config:
    """The same run from where its folder left it; a folder of other settings is removed.

    So a benchmark that was interrupted, and is called again, repeats none of its rounds.
    """
    folder = Path(config.run.output_dir, config.run.name)
    if (folder / LEDGER).exists():
        with closing(LedgerReader.open(folder / LEDGER)) as ledger:
            changes = with_estimator(config).differences(read_config(ledger))
        if not changes:
            return Config(config.to_run_config() | {"resume": str(folder.resolve())})
    shutil.rmtree(folder, ignore_errors=True)
    return config


def _score(ledger: LedgerReader, round_: int) -> str:
    loss = ledger.evaluation(round_)
    texts = [f"round {round_:,}"] + ([] if loss is None else [f"loss {loss:.4f}"])
    scores = [row.accuracy for row in ledger.round_summaries(round_, round_)]
    return ", ".join(texts + [f"accuracy {score:.2%}" for score in scores if score is not None])


def _batch(config: Config) -> int:
    """Examples of one evaluation at a site: its batch, on average, or all of them."""
    size = config.zo.batch_size
    if size and config.data.batch_order != EPOCHS:
        return size
    data = SiteData.of(config, Oracle.of(resolve_choices(config)).language_model)
    count = len(data.shard(0, config.federation.num_clients).queries)
    return count // -(-count // size) if size else count


def _train_start(problem: RaceTask, trial: Trial) -> None:
    """Train the base that a problem starts from, if it has one and it is not there yet."""
    folder = trial.folder / problem.name
    if not problem.start or (folder / "base" / "model").is_dir():
        return
    shutil.rmtree(folder / "base", ignore_errors=True)
    own = {"save-model": True, "output-dir": str(folder), "run-name": "base"}
    run_local(configure({**COMMON, **problem.start, **trial.more, **own}))


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)
