"""A query over two plain forwards on a device, beside MeZO's loop and clone-and-restore."""

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dandelion.bench.query import CLONE, IN_PLACE, PLAIN, QUERY, ways
from dandelion.gpu_check.records import StepTask
from dandelion.gpu_check.timing import fill_, peak_bytes, profile, ratio, take_turns
from shared.base.flat import FlatModel, flatten
from shared.models.gpt2 import SHAPES, hollow
from shared.training.oracle import cast_

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
    for other in (IN_PLACE, CLONE):
        task.row(f"{other}, {case}", ratio(times, other, PLAIN))
    _memory(task, case, model, calls)
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
    """Record what a query adds to the peak of two plain forwards, over the parameters' bytes."""
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
