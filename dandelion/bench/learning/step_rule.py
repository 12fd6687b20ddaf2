"""``step = auto`` against the best of five rates: which share of its fall comes without a search.

Tasks from a thousand to 135 million trained numbers, with two batch sizes each. Both ways have the
same estimator, optimizer, rounds and seeds; what differs is where the rate comes from.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from statistics import median

from dandelion.bench.learning import mnist
from dandelion.bench.learning.methods import OURS, Settings
from dandelion.bench.learning.problems import MINILM, REVIEWS, RaceTask
from dandelion.bench.learning.race import Trial, methods_of, search_all
from dandelion.bench.learning.race_points import RaceCurve
from shared.base.errors import UnknownNameError
from shared.base.files import write_atomically

FIXED, RULE = "fixed rate", "step = auto"
FIXED_CURVES, RULE_CURVES = f"{OURS}: {FIXED}", f"{OURS}: {RULE}"
ENOUGH = 0.85  # of the fall that the best rate brings
ROWS_FILE = "step-rule.json"
WHOLE = 0  # a batch of all that a site has
TITLES = ("task", "numbers", "batch", "rounds", "best rate", "its fall", "fall by the rule",
          "share", "rewinds")  # fmt: skip


@dataclass(frozen=True)
class RuleTask:
    """What is trained, along how many directions, and in the middle of which rates."""

    name: str
    about: str
    numbers: int  # that are trained
    settings: Settings
    evaluations: int  # per site and run
    batches: tuple[int, int]
    rate: float
    carriers: tuple[str, ...] = ()
    install: Callable[[], None] = lambda: None

    def problem(self, batch: int) -> RaceTask:
        """The race of the two ways with a batch size."""
        own = {FIXED: {"step": "plain"}, RULE: {"step": "auto"}}
        return RaceTask(
            f"step-{self.name}-{batch or 'all'}",
            self.about,
            {**self.settings, "zo-batch-size": batch},
            self.evaluations,
            {FIXED_CURVES: self.rate},
            own,
            carriers=self.carriers,
            install=self.install,
        )


FEW: Settings = {"partitioner": "iid", "estimator": "forward", "queries": 15}
READOUT: Settings = {"queries": 64, "partitioner": "iid"}
PROMPT: Settings = {**REVIEWS, "model": "smollm2-135m", "label-words": "terrible, great"}
SHORT: Settings = {"num-clients": 2, "block-size": 32, "max-samples": 164, "eval-blocks": 64}
STEP_TASKS: Mapping[str, RuleTask] = {
    task.name: task
    for task in (
        RuleTask("minilm-readout", "MiniLM, linear head on mean-pooled states, exact slopes", 770,
                 {**MINILM, **READOUT, "scope": "head", "features": "mean"}, 60, (128, WHOLE), 0.25,
                 ("rotten-tomatoes", "minilm")),
        RuleTask("words", "SmolLM2, offset on the label words, exact slopes", 1_154,
                 {**PROMPT, **READOUT, "scope": "words", "eval-blocks": 1404}, 60, (128, WHOLE),
                 0.25, ("rotten-tomatoes", "smollm2")),
        RuleTask("mnist", "DeComFL's network", 28_938,
                 {**FEW, "task": "pictures", "dataset": "mnist-pixels", "model": mnist.NAME,
                  "block-size": 784, "eval-blocks": 1000, "max-samples": 8000},
                 640, (8, 32), 2.5e-3, ("mnist",), mnist.register),
        RuleTask("demo", "byte-level GPT of the demo", 124_864,
                 {**FEW, "block-size": 64, "eval-blocks": 64}, 480, (4, 16), 4e-2),
        RuleTask("last-2", "SmolLM2, its last two blocks, from kept activations", 7_080_192,
                 {**PROMPT, **FEW, **SHORT, "scope": "last:2"}, 160, (4, 16), 1e-3,
                 ("rotten-tomatoes", "smollm2")),
        RuleTask("full", "SmolLM2, all of it", 134_515_008,
                 {**PROMPT, **FEW, **SHORT, "scope": "full", "queries": 7}, 64, (2, 8), 5e-5,
                 ("rotten-tomatoes", "smollm2")),
    )
}  # fmt: skip


@dataclass(frozen=True)
class StepRow:
    """One task with one batch size."""

    task: str
    numbers: int
    batch: int  # 0: all of a site's examples
    rounds: int
    rate: float  # the best of those that were tried
    at_edge: bool  # whether it was the least or the greatest
    fixed: list[float] = field(default_factory=list)  # fall of the held-out loss, by seed
    rule: list[float] = field(default_factory=list)  # the same with ``step = auto``
    rewinds: int = 0  # of all runs with the rule

    @property
    def shares(self) -> list[float]:
        """Fall by the rule / fall at the best rate, by seed."""
        return [rule / fixed for rule, fixed in zip(self.rule, self.fixed, strict=True)]

    @property
    def is_enough(self) -> bool:
        """Whether the median seed loses at most 15 %, and no run was rewound."""
        return median(self.shares) >= ENOUGH and not self.rewinds

    @classmethod
    def of(cls, task: RuleTask, batch: int, curves: Sequence[RaceCurve]) -> "StepRow":
        """From all curves of a race; the best rate is that whose first seed ended lowest."""
        searched = [curve for curve in curves if curve.method == FIXED_CURVES]
        first = sorted((c.rate or 0.0, c.final) for c in searched if c.seed == 1)
        rate = min(first, key=lambda each: each[1])[0]
        rule = [curve for curve in curves if curve.method == RULE_CURVES]
        return cls(
            task.name, task.numbers, batch, rule[0].points[-1].round, rate,
            at_edge=len(first) > 2 and rate in (first[0][0], first[-1][0]),
            fixed=[fall_of(curve) for curve in searched if curve.rate == rate],
            rule=[fall_of(curve) for curve in rule],
            rewinds=sum(curve.rewinds for curve in rule),
        )  # fmt: skip


def fall_of(curve: RaceCurve) -> float:
    """The fall of the held-out loss from the start to the end of a run."""
    return curve.points[0].loss - curve.final


def step_rule(
    names: Sequence[str], batches: Sequence[int], trial: Trial, say: Callable[[str], None]
) -> list[StepRow]:
    """Race the rule against the best rate; write ``step-rule.json`` and ``.md``.

    Args:
        names: of tasks; none: all whose packages are at hand.
        batches: sizes, in place of the two of each task.
        trial: rates, seeds, evaluations and the folder.
        say: prints a line of progress.

    Raises:
        UnknownNameError: there is no such task.
    """
    if unknown := [name for name in names if name not in STEP_TASKS]:
        raise UnknownNameError("task", unknown[0], STEP_TASKS)
    rows = list[StepRow]()
    for task in map(STEP_TASKS.__getitem__, names or STEP_TASKS):
        if not names and not task.problem(WHOLE).is_at_hand:
            say(f"{task.name}: left out; it needs {', '.join(task.carriers)}: --task {task.name} "
                "fetches them")  # fmt: skip
            continue
        for batch in batches or task.batches:
            rows.append(_race(task, batch, trial, say))
            write_rows(rows, trial.folder)
    return rows


def _race(task: RuleTask, batch: int, trial: Trial, say: Callable[[str], None]) -> StepRow:
    problem = task.problem(batch)
    problem.install()
    methods = methods_of(problem, (RULE_CURVES, FIXED_CURVES))
    return StepRow.of(task, batch, search_all(problem, methods, trial, say, fall_of))


def write_rows(rows: Sequence[StepRow], folder: Path) -> None:
    """Write the rows as JSON and as a table in Markdown, behind those of earlier calls."""
    rows = [*earlier_rows(folder, rows), *rows]
    data = [asdict(row) | {"shares": row.shares} for row in rows]
    write_atomically(folder / ROWS_FILE, (json.dumps(data, indent=1) + "\n").encode())
    write_atomically(folder / "step-rule.md", markdown_of(rows).encode())


def earlier_rows(folder: Path, rows: Sequence[StepRow]) -> list[StepRow]:
    """The rows of a folder, but those of tasks and batches that have new ones."""
    if not (folder / ROWS_FILE).is_file():
        return []
    fresh = {(row.task, row.batch) for row in rows}
    written = json.loads((folder / ROWS_FILE).read_text())
    earlier = [StepRow(**{k: v for k, v in row.items() if k != "shares"}) for row in written]
    return [row for row in earlier if (row.task, row.batch) not in fresh]


def markdown_of(rows: Sequence[StepRow]) -> str:
    """The table, for a page of documentation: medians, and the shares of all seeds."""
    lines = [TITLES, ["---"] * len(TITLES), *map(_cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: StepRow) -> list[str]:
    """A row as text; what is enough is bold."""
    mark = "**" if row.is_enough else ""
    shares = [f"{share:.0%}" if isfinite(share) else "–" for share in row.shares]
    return [
        row.task,
        f"{row.numbers:,}",
        str(row.batch) if row.batch else "all",
        str(row.rounds),
        f"{row.rate:.2g}" + " (edge)" * row.at_edge,
        f"{median(row.fixed):.4f}",
        f"{median(row.rule):.4f}",
        f"{mark}{median(row.shares):.0%}{mark}" + f" ({', '.join(shares)})" * (len(shares) > 1),
        str(row.rewinds),
    ]
