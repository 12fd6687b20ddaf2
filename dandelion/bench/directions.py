"""Adding random directions to a vector: our kernels against the peers' ways."""

from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from dandelion.bench.rows import BenchRow, alternate
from shared.base.flat import Layout
from shared.directions import DIRECTIONS
from shared.randomness.streams import Key

SCALE = 1e-3
FUSED = 64  # directions added in one pass
ADD, ONE, MANY = "torch.add_ of a scalar", "one sign direction", f"{FUSED} sign directions fused"


def directions(parameters: int = 20_000_000, repeats: int = 7) -> list[BenchRow]:
    """Time one direction added to a vector of ``parameters`` float32 numbers in each way.

    Returns:
        Rows whose seconds are per element and direction: medians of ``repeats`` turns. Ratios are
        medians of quotients within a turn: ours to a plain ``torch.add_`` (which draws nothing), a
        peer's to ours fused, that is how many times slower the peer is.
    """
    times = alternate({**_ours(parameters), **_peers(parameters)}, repeats)
    times[MANY] = [seconds / FUSED for seconds in times[MANY]]
    return [_row(name, times, parameters) for name in times]


def _ours(parameters: int) -> dict[str, Callable[[], object]]:
    layout = Layout.of([("vector", (parameters,))])
    family, vector = DIRECTIONS["rademacher"](layout), torch.zeros(parameters)
    plain = torch.zeros(parameters)  # a vector of its own, or it would warm the cache for ours
    keys = [Key(seed=1, round=1, slot=0, index=k) for k in range(FUSED)]
    return {
        ADD: lambda: plain.add_(SCALE),
        ONE: lambda: family.add_to_(vector, keys[:1], [SCALE]),
        MANY: lambda: family.add_to_(vector, keys, [SCALE] * FUSED),
    }


def _peers(parameters: int) -> dict[str, Callable[[], object]]:
    vector = torch.zeros(parameters)
    array = vector.numpy()

    def mezo() -> None:
        torch.manual_seed(1)
        vector.add_(torch.normal(0.0, 1.0, (parameters,)) * SCALE)

    def decomfl() -> None:
        generator = torch.Generator().manual_seed(1)
        vector.add_(torch.randn(parameters, generator=generator), alpha=SCALE)

    def original() -> None:
        z = np.random.default_rng(1).standard_normal(parameters, dtype=np.float32)
        z /= np.linalg.norm(z)
        np.add(array, np.float32(SCALE) * z, out=array)

    return {
        "torch.normal, then add (MeZO)": mezo,
        "torch.randn, then axpy (DeComFL)": decomfl,
        "numpy default_rng, normalise, add (original server)": original,
    }


def _row(name: str, times: dict[str, list[float]], parameters: int) -> BenchRow:
    base = ADD if name in (ADD, ONE, MANY) else MANY
    ratio = median(a / b for a, b in zip(times[name], times[base], strict=True))
    note = f"per element and direction; ratio to {base}"
    return BenchRow(name, median(times[name]) / parameters, ratio, note)
