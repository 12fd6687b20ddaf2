"""``dandelion bench learning``: chooses problems, races the methods, and writes the files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from dandelion.bench.learning.methods import Settings
from dandelion.bench.learning.problems import PROBLEMS, RaceTask, problem_of
from dandelion.bench.learning.race import Trial, race
from dandelion.bench.learning.race_points import RaceCurve
from dandelion.bench.learning.race_report import write_files

QUICK_RATES = 2
QUICK_EVALUATIONS = 12  # per site
QUICK: Settings = {"num-clients": 2, "max-samples": 40, "eval-blocks": 16, "block-size": 32,
         "model": "byte-gpt"}  # fmt: skip
QUICK_START: Settings = {"num-rounds": 4}


def learning(
    names: Sequence[str],
    trial: Trial,
    is_quick: bool,
    say: Callable[[str], None],
) -> dict[str, list[RaceCurve]]:
    """Race all methods on some problems; write each problem's files into the trial's folder.

    Args:
        names: of the problems; none: all whose packages are at hand, if quick those without any.
        trial: how much is tried.
        is_quick: whether the problems and the trial are made small, for a test of the whole way.
        say: prints a line of progress.

    Raises:
        UnknownNameError: there is no such problem.
        DataError: what a named problem needs cannot be fetched.
    """
    results = {}
    for problem in _choose(names, is_quick, say):
        chosen, own = (_shrink(problem), _small(trial, problem)) if is_quick else (problem, trial)
        results[problem.name] = race(chosen, own, say)
        for path in write_files(problem, results[problem.name], trial.folder):
            say(f"written: {path}")
    return results


def _choose(names: Sequence[str], is_quick: bool, say: Callable[[str], None]) -> Iterator[RaceTask]:
    if names:
        yield from map(problem_of, names)
        return
    for problem in PROBLEMS.values():
        if problem.is_at_hand and not (is_quick and problem.carriers):
            yield problem
        else:
            say(f"{problem.name}: left out; it needs {', '.join(problem.carriers)}: --task "
                f"{problem.name} fetches them")  # fmt: skip


def _shrink(problem: RaceTask) -> RaceTask:
    """The same with a shorter base, if it has one."""
    return replace(problem, start={**problem.start, **QUICK_START} if problem.start else {})


def _small(trial: Trial, problem: RaceTask) -> Trial:
    """One seed, two rates, and few evaluations; problems with packages keep data and model."""
    return replace(
        trial,
        seeds=1,
        factors=trial.factors[:QUICK_RATES],
        evaluations=QUICK_EVALUATIONS,
        more={} if problem.carriers else QUICK,
    )
