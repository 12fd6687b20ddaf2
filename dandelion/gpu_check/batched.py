"""Queries batched over directions on a device: tokens per second over plain inference."""

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dandelion.bench.query import EPS
from dandelion.gpu_check.query import build_on, tokens_on
from dandelion.gpu_check.records import StepTask
from dandelion.gpu_check.timing import peak_bytes, profile, ratio, take_turns
from shared.base.flat import FlatModel
from shared.directions import DIRECTIONS
from shared.estimation.batched_queries import BatchedQueries
from shared.estimation.perturber import Perturber
from shared.models.gpt2 import SHAPES
from shared.models.next_token import example_losses
from shared.randomness.streams import Key

REPEATS, GOAL = 5, 0.90  # EGGROLL reports 0.91
MOST_PROFILES = 2  # of one run
PLAIN_BATCH = 1 << 14  # tokens of one plain forward at most, so that its logits fit
PLAIN, BATCHED = "plain inference", "batched"


@dataclass(frozen=True)
class DirectionsCase:
    """A family, a model size, a batch of each direction, and how many directions."""

    family: str
    size: str
    batch: int
    length: int
    queries: int

    def __str__(self) -> str:
        """The case in words, as rows name it."""
        millions = SHAPES[self.size].parameters / 1e6
        return (
            f"{self.family}, {millions:,.4g} M, q = {self.queries}, {self.batch}×{self.length} "
            "tokens a direction"
        )


CASES = tuple(
    DirectionsCase("lowrank", size, 1, 64, queries)
    for size in ("200M", "500M")
    for queries in (8, 32, 128)
)
TINY = (DirectionsCase("lowrank", "byte-gpt", 1, 16, 4),)


def run(task: StepTask) -> None:
    """Measure every case that there is time and memory for."""
    profiles = 0
    for case in TINY if task.tiny else CASES:
        try:
            if task.has_time_for(str(case), 0.0 if task.tiny else 5.0):
                profiles += _measure(task, case, profiles < MOST_PROFILES)
        except torch.cuda.OutOfMemoryError as error:
            task.skip(str(case), str(error).partition(".")[0])
        gc.collect()


def _measure(task: StepTask, case: DirectionsCase, may_profile: bool) -> bool:
    """Record a case's row; return whether a profile was recorded too."""
    model = build_on(task.device, case.size, "float32")
    calls = ways(model, case)
    times = take_turns(calls, task.device, REPEATS)
    share = ratio(times, PLAIN, BATCHED)
    tokens = 2 * case.queries * case.batch * case.length
    rate = tokens / sorted(times[BATCHED])[REPEATS // 2]
    note = f"{rate:,.0f} tokens/s"
    if (peak := peak_bytes(calls[BATCHED], task.device)) is not None:
        note += f", peak {peak / 2**30:.2f} GiB"
    task.row(f"tokens/s over {PLAIN}, {case}", share, "", at_least=GOAL, note=note)
    slow = may_profile and share < GOAL
    if slow:
        profile(task, f"{BATCHED}, {case}: {share:.2f}", calls[BATCHED])
    return slow


def ways(model: FlatModel, case: DirectionsCase) -> dict[str, Callable[[], object]]:
    """All directions at both signs in one batch, and plain forwards of as many tokens."""
    device = model.flat.device.type
    directions = DIRECTIONS[case.family](model.layout)
    batched = BatchedQueries(model, directions, Perturber(model, directions))
    keys = [Key(1, 1, 0, index) for index in range(case.queries)]
    blocks = tokens_on(device, case.size, case.batch, case.length)
    stacked = blocks.expand(case.queries, *blocks.shape)
    rows = torch.cat([stacked, stacked]).flatten(0, 1)
    parts = torch.split(rows, max(1, PLAIN_BATCH // case.length))
    return {
        PLAIN: lambda: [example_losses(model.module, part) for part in parts],
        BATCHED: lambda: batched.losses(keys, EPS, stacked),
    }
