"""Random directions on a device: one over a plain addition, 64 fused, and the bandwidth used."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dandelion.bench.directions import FUSED, SCALE
from dandelion.gpu_check.records import StepTask
from dandelion.gpu_check.timing import Calls, ratio, take_turns
from shared.base.flat import Layout
from shared.directions import DIRECTIONS
from shared.randomness.streams import Key

PARAMETERS = (100_000_000, 1_000_000_000, 4_000_000_000)
TINY = (200_000, 1_000_000)
REPEATS = 7
ADD, ONE, MANY, MEZO = "torch.add_", "one direction", f"{FUSED} fused", "normal_ + add (MeZO)"
COPY, PERTURB = "copy", "perturb"


def run(task: StepTask) -> None:
    """Measure each size that the device's memory has room for."""
    for size in TINY if task.tiny else PARAMETERS:
        what = f"{size / 1e9:g} G parameters"
        try:
            if task.has_time_for(what, 5.0 if size > PARAMETERS[0] else 0.0):
                _measure(task, size, what)
        except torch.cuda.OutOfMemoryError as error:
            task.skip(what, str(error).partition(".")[0])


def _measure(task: StepTask, size: int, what: str) -> None:
    flat = torch.zeros(size, device=task.device)
    times = take_turns(ways(flat), task.device, REPEATS)
    source = torch.zeros_like(flat)
    calls: Calls = {COPY: partial(flat.copy_, source), PERTURB: partial(_perturb_, flat, source)}
    bandwidth = take_turns(calls, task.device, REPEATS)
    del source, calls
    speed = 2 * 4 * size / sorted(bandwidth[COPY])[REPEATS // 2] / 1e9
    each = ratio(times, MEZO, MANY) * FUSED
    task.row(f"{ONE} over {ADD}, {what}", ratio(times, ONE, ADD), at_most=1.2)
    task.row(f"{MEZO} over {FUSED} fused, a direction, {what}", each, at_least=50.0)
    task.row(
        f"share of the copy's bandwidth, perturb, {what}",
        ratio(bandwidth, COPY, PERTURB),
        "",
        at_least=0.85,
        note=f"the copy moves {speed:,.0f} GB/s",
    )
    seconds = sorted(times[MANY])[REPEATS // 2]
    task.row(f"{FUSED} fused, {what}", seconds, "s")


def ways(flat: Tensor) -> dict[str, Callable[[], object]]:
    """Additions to a vector (n,): of a scalar, of one sign direction, of 64, of MeZO's normals."""
    family = DIRECTIONS["rademacher"](Layout.of([("vector", tuple(flat.shape))]))
    keys = [Key(seed=1, round=1, slot=0, index=k) for k in range(FUSED)]

    def mezo() -> None:
        torch.manual_seed(1)
        flat.add_(torch.normal(0.0, 1.0, tuple(flat.shape), device=flat.device) * SCALE)

    return {
        ADD: lambda: flat.add_(SCALE),
        ONE: lambda: family.add_to_(flat, keys[:1], [SCALE]),
        MANY: lambda: family.add_to_(flat, keys, [SCALE] * FUSED),
        MEZO: mezo,
    }


def _perturb_(out: Tensor, source: Tensor) -> None:
    family = DIRECTIONS["rademacher"](Layout.of([("vector", tuple(out.shape))]))
    family.perturb_(out, source, 0, Key(1, 1, 0, 0), SCALE)
