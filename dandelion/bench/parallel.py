"""Many directions in one batched forward against one by one, on a byte-level model of 5 M."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from dandelion.bench.query import EPS, in_place
from dandelion.bench.rows import BenchRow, alternate, on_threads
from shared.base.flat import FlatModel, flatten
from shared.directions import DIRECTIONS
from shared.estimation.batched_queries import BatchedQueries
from shared.estimation.perturber import Perturber
from shared.estimation.two_point import two_point
from shared.models.gpt2 import BYTES, Shape, hollow, initialise_
from shared.models.next_token import next_token_loss
from shared.randomness.streams import Key

MODEL = Shape(width=256, layers=6, heads=4, positions=512, vocabulary=BYTES)
BATCHED, ALONE, PLAIN = "batched, lowrank", "one by one, lowrank", "plain forwards"
SIGNS, SIGNS_ALONE = "batched, rademacher", "one by one, rademacher"


@dataclass(frozen=True)
class BatchCase:
    """A batch, and the directions that are measured on it."""

    batch: int
    length: int
    queries: int


CASES = (BatchCase(1, 16, 8), BatchCase(1, 16, 32), BatchCase(1, 128, 8))


def parallel(
    repeats: int = 7, cases: tuple[BatchCase, ...] = CASES, shape: Shape = MODEL
) -> list[BenchRow]:
    """Medians of seconds for all queries of a case, and of ratios within a turn."""
    with on_threads():
        module = hollow(shape)
        initialise_(module, 1, shape.layers)
        model = flatten(module)
        return [row for case in cases for row in _case(model, shape, case, repeats)]


def _case(model: FlatModel, shape: Shape, case: BatchCase, repeats: int) -> list[BenchRow]:
    blocks = torch.arange(case.batch * case.length).view(case.batch, -1) * 7919 % shape.vocabulary
    times = alternate(ways(model, blocks, case.queries), repeats)
    what = f"{case.batch}x{case.length} tokens, q = {case.queries}"
    rows = [_row(BATCHED, base, times, what) for base in (ALONE, SIGNS_ALONE, PLAIN)]
    return rows + [_row(name, PLAIN, times, what) for name in times if name != BATCHED]


def ways(model: FlatModel, blocks: Tensor, queries: int) -> dict[str, Callable[[], object]]:
    """All queries at both signs: batched, one by one, plain, and in MeZO's loop."""
    keys = [Key(1, 1, 0, index) for index in range(queries)]
    stacked = blocks.expand(queries, *blocks.shape)

    def loss(query: int = 0) -> float:
        return next_token_loss(model.module, blocks)

    def family(name: str) -> tuple[BatchedQueries, Perturber]:
        directions = DIRECTIONS[name](model.layout)
        perturber = Perturber(model, directions)
        return BatchedQueries(model, directions, perturber), perturber

    (products, alone), (signs, signs_alone) = family("lowrank"), family("rademacher")
    return {
        PLAIN: lambda: [loss() for _ in range(2 * queries)],
        BATCHED: lambda: products.losses(keys, EPS, stacked),
        ALONE: lambda: two_point(loss, alone, keys, EPS),
        SIGNS: lambda: signs.losses(keys, EPS, stacked),
        SIGNS_ALONE: lambda: two_point(loss, signs_alone, keys, EPS),
        "in-place Gaussian (MeZO)": lambda: _loop(model, loss, queries),
    }


def _row(name: str, base: str, times: dict[str, list[float]], what: str) -> BenchRow:
    ratio = median(a / b for a, b in zip(times[name], times[base], strict=True))
    return BenchRow(f"{name}, {what}", median(times[name]), ratio, f"to {base}")


def _loop(model: FlatModel, loss: Callable[[], float], queries: int) -> None:
    for _ in range(queries):
        in_place(model.module, loss)
