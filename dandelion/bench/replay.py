"""Replaying many rounds: one fused pass, one with every digest, and the peers' ways."""

from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import Tensor

from dandelion.bench.rows import THREADS, BenchRow, alternate, on_threads
from shared.base.flat import FlatModel, flatten
from shared.config.schema import Config
from shared.models.gpt2 import build
from shared.protocol.entry import Entry, SlotDifferences
from shared.replica.replica import Replica

SIZE, ROUNDS, QUERIES = "20M", 1000, 16
SHORT = 50  # rounds of the slower ways
POOL = 8  # seeds of a peer's pool that are replayed
PASS = f"{ROUNDS:,} rounds in one pass"


def replay(repeats: int = 7, size: str = SIZE, rounds: int = ROUNDS) -> list[BenchRow]:
    """Seconds per parameter and direction, medians; a ratio is how many times slower than ours.

    The note has parameters times directions per second and core.
    """
    with on_threads():
        return _rows(repeats, size, rounds)


def _rows(repeats: int, size: str, rounds: int) -> list[BenchRow]:
    model = flatten(build(size, seed=1).module)
    entries = [_entry(number) for number in range(1, rounds + 1)]
    short = entries[:SHORT]
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        PASS: (rounds * QUERIES, lambda: _replica(model).apply(entries)),
        f"{len(short)} rounds in one pass, every digest": (
            len(short) * QUERIES,
            lambda: list(_replica(model).apply_with_digests(short)),
        ),
        f"{len(short)} rounds, one by one": (len(short) * QUERIES, lambda: _each(model, short)),
        "pool replay (FedKSeed)": (POOL, lambda: _pool(model)),
        "flat normals and SGD steps (DeComFL)": (POOL, lambda: _flat_normals(model.flat)),
    }
    times = alternate({name: way for name, (_, way) in ways.items()}, repeats)
    parameters = model.layout.parameters
    each = {n: [s / ways[n][0] / parameters for s in seconds] for n, seconds in times.items()}
    return [
        BenchRow(
            f"{name}, {parameters / 1e6:.1f} M",
            median(seconds),
            median(a / b for a, b in zip(seconds, each[PASS], strict=True)),
            f"{1 / median(seconds) / THREADS:.3g} parameter·directions per second and core",
        )
        for name, seconds in each.items()
    ]


def _entry(round_: int) -> Entry:
    differences = np.linspace(-1e-4, 1e-4, QUERIES, dtype=np.float32)
    return Entry(round_, 1e-3, (SlotDifferences(0, differences),))


def _replica(model: FlatModel) -> Replica:
    return Replica.of(model, Config(queries=QUERIES))


def _each(model: FlatModel, entries: list[Entry]) -> None:
    replica = _replica(model)
    for entry in entries:
        replica.apply([entry])


def _pool(model: FlatModel) -> None:
    """FedKSeed (Qin et al. 2023): for each seed of the pool that was used, reseed and step."""
    for seed in range(POOL):
        torch.manual_seed(seed)
        for view in model.layout.views(model.flat).values():
            z = torch.normal(0.0, 1.0, size=view.shape)
            view.copy_(view - 1e-9 * (0.5 * z + 0.0 * view))


def _flat_normals(flat: Tensor) -> None:
    """DeComFL (Li et al. 2024): a flat gradient for each missed direction, then a step of SGD."""
    gradient = torch.zeros_like(flat)
    for seed in range(POOL):
        generator = torch.Generator().manual_seed(seed)
        gradient.add_(torch.randn(flat.numel(), generator=generator), alpha=1e-3)
        flat.add_(gradient, alpha=-1e-9)
        gradient.zero_()
