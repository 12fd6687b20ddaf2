"""Queries on a device: one beside plain forwards and others' ways, and many in one batch."""

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dandelion.bench.query import CAPTURED, CLONE, EPS, IN_PLACE, LIGHT, PLAIN, QUERY, ways
from dandelion.gpu_check.records import StepTask
from dandelion.gpu_check.timing import fill_, peak_bytes, profile, ratio, take_turns
from shared.base.flat import FlatModel, flatten
from shared.directions import DIRECTIONS
from shared.estimation.batched_queries import BatchedQueries
from shared.estimation.perturber import Perturber
from shared.models.gpt2 import SHAPES, hollow
from shared.models.next_token import example_losses
from shared.randomness.streams import Key
from shared.training.start import cast_

REPEATS = 7
GOAL, EXTRA_MEMORY = 1.10, 0.02  # over two plain forwards; of the parameters' bytes
MOST_PROFILES = 4  # of one run: what is slow once is slow elsewhere for the same reason


@dataclass(frozen=True)
class DeviceCase:
    """A model size in a dtype, and a batch of it."""

    size: str
    dtype: str
    batch: int
    length: int

    def __str__(self) -> str:
        """The case in words, as rows name it."""
        millions = SHAPES[self.size].parameters / 1e6
        return f"{millions:,.4g} M, {self.dtype}, {self.batch}×{self.length} tokens"


CASES = tuple(
    DeviceCase(size, dtype, batch, length)
    for size in ("200M", "500M", "1B")
    for dtype in ("float32", "bfloat16")
    for batch, length in ((8, 128), (32, 64))
)
TINY = (DeviceCase("byte-gpt", "float32", 2, 16), DeviceCase("byte-gpt", "bfloat16", 2, 16))
SECONDS = {"200M": 3.0, "500M": 5.0, "1B": 12.0, "byte-gpt": 0.0}  # that a case may take


def run(task: StepTask) -> None:
    """Measure every case that there is time for; a slow one leaves a profile of its kernels."""
    profiles = 0
    for case in TINY if task.tiny else CASES:
        if task.has_time_for(str(case), SECONDS[case.size]):
            profiles += _measure(task, case, profiles < MOST_PROFILES)


def _measure(task: StepTask, case: DeviceCase, may_profile: bool) -> bool:
    """Record a case's rows; return whether a profile was recorded too."""
    model = build_on(task.device, case.size, case.dtype)
    blocks = tokens_on(task.device, case.size, case.batch, case.length)
    calls = ways(model, blocks)
    times = take_turns(calls, task.device, REPEATS)
    over = ratio(times, QUERY, PLAIN)
    seconds = sorted(times[PLAIN])[REPEATS // 2]
    note = f"two plain forwards: {1e3 * seconds:.3g} ms"
    task.row(f"{QUERY}, {case}", over, at_most=GOAL, note=note)
    for other in (LIGHT, CAPTURED, IN_PLACE, CLONE):
        if other in times:
            task.row(f"{other}, {case}", ratio(times, other, PLAIN))
    _memory(task, case, model, ways(model, blocks))
    slow = may_profile and over > GOAL
    if slow:
        profile(task, f"{QUERY}, {case}: {over:.2f} ×", calls[QUERY])
        profile(task, f"{PLAIN}, {case}", calls[PLAIN])
    del model, calls
    gc.collect()
    return slow


def _memory(
    task: StepTask, case: DeviceCase, model: FlatModel, calls: dict[str, Callable[[], object]]
) -> None:
    """Record what a query adds to the peak of two plain forwards, over the parameters' bytes.

    ``calls`` are new ones, so that the query is captured within.
    """
    plain, ours = (peak_bytes(calls[name], task.device) for name in (PLAIN, QUERY))
    if plain is None or ours is None:
        return task.skip(f"extra memory, {case}", "a CPU's peak is of its process, not of a call")
    share = (ours - plain) / (model.flat.element_size() * model.layout.parameters)
    task.row(f"extra memory of a query, {case}", share, "", at_most=EXTRA_MEMORY)
    return None


def build_on(device: str, size: str, dtype: str) -> FlatModel:
    """A GPT-2 of a size, made and filled on the device."""
    with torch.device(device):
        module = hollow(SHAPES[size])
    fill_(module)
    return flatten(cast_(module.to(device), dtype))


def tokens_on(device: str, size: str, batch: int, length: int) -> Tensor:
    """Blocks (batch, length) of tokens that differ."""
    count = batch * length
    numbers = torch.arange(count, device=device).view(batch, length)
    return numbers * 7919 % SHAPES[size].vocabulary


BATCH_REPEATS, LEAST_SHARE = 5, 0.90  # of plain inference; EGGROLL reports 0.91
PLAIN_BATCH = 1 << 14  # tokens of one plain forward at most, so that its logits fit
INFERENCE, BATCHED = "plain inference", "batched"


@dataclass(frozen=True)
class DirectionsCase:
    """A family, a model size, a batch of each direction, how many directions, and which points."""

    family: str
    size: str
    batch: int
    length: int
    queries: int
    forward: bool = False  # at +ε and at θ itself, instead of at both signs

    def __str__(self) -> str:
        """The case in words, as rows name it."""
        millions = SHAPES[self.size].parameters / 1e6
        kind = "forward" if self.forward else "two-point"
        return (
            f"{self.family}, {kind}, {millions:,.4g} M, q = {self.queries}, "
            f"{self.batch}×{self.length} tokens a direction"
        )

    @property
    def points(self) -> int:
        """Evaluations of all directions."""
        return self.queries + 1 if self.forward else 2 * self.queries


BATCHES = (
    *(
        DirectionsCase("lowrank", size, 1, 64, queries)
        for size in ("200M", "500M")
        for queries in (8, 32, 128)
    ),
    *(DirectionsCase("lowrank", "200M", 1, 64, queries, True) for queries in (8, 32, 128)),
    DirectionsCase("lowrank", "200M", 8, 64, 32),
)
TINY_BATCHES = tuple(
    DirectionsCase("lowrank", "byte-gpt", 1, 16, 4, forward) for forward in (False, True)
)


def run_batched(task: StepTask) -> None:
    """Measure every case that there is time and memory for."""
    profiles = 0
    for case in TINY_BATCHES if task.tiny else BATCHES:
        try:
            if task.has_time_for(str(case), 0.0 if task.tiny else 5.0):
                profiles += _measure_batched(task, case, profiles < MOST_PROFILES)
        except torch.cuda.OutOfMemoryError as error:
            task.skip(str(case), str(error).partition(".")[0])
        gc.collect()


def _measure_batched(task: StepTask, case: DirectionsCase, may_profile: bool) -> bool:
    """Record a case's row; return whether a profile was recorded too."""
    model = build_on(task.device, case.size, "float32")
    calls = ways_in_batches(model, case)
    times = take_turns(calls, task.device, BATCH_REPEATS)
    share = ratio(times, INFERENCE, BATCHED)
    tokens = case.points * case.batch * case.length
    rate = tokens / sorted(times[BATCHED])[BATCH_REPEATS // 2]
    note = f"{rate:,.0f} tokens/s"
    if (peak := peak_bytes(calls[BATCHED], task.device)) is not None:
        note += f", peak {peak / 2**30:.2f} GiB"
    task.row(f"tokens/s over {INFERENCE}, {case}", share, "", at_least=LEAST_SHARE, note=note)
    slow = may_profile and share < LEAST_SHARE
    if slow:
        profile(task, f"{BATCHED}, {case}: {share:.2f}", calls[BATCHED])
    return slow


def ways_in_batches(model: FlatModel, case: DirectionsCase) -> dict[str, Callable[[], object]]:
    """All points of the directions in one batch, and plain forwards of as many tokens."""
    device = str(model.flat.device)
    directions = DIRECTIONS[case.family](model.layout)
    batched = BatchedQueries(model, directions, Perturber(model, directions))
    keys = [Key(1, 1, 0, index) for index in range(case.queries)]
    rest, other = ([keys[0]], 0.0) if case.forward else (keys, -EPS)
    scales = [EPS] * len(keys) + [other] * len(rest)
    blocks = tokens_on(device, case.size, case.batch, case.length)
    stacked = blocks.expand(case.points, *blocks.shape)
    parts = torch.split(stacked.flatten(0, 1), max(1, PLAIN_BATCH // case.length))
    return {
        INFERENCE: lambda: [example_losses(model.module, part) for part in parts],
        BATCHED: lambda: batched.at([*keys, *rest], scales, stacked),
    }
