"""Memory of a model: estimated from its shapes, and measured as a query's peak over a forward.

``python -m dandelion.bench.memory WAY`` measures one way in this process.
"""

import json
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from dandelion.bench.rows import THREADS, BenchRow, run_apart
from shared.base.flat import TILE, Layout, flatten
from shared.directions import DIRECTIONS
from shared.estimation.perturber import COPIES_SHARE, SMALL_TILES, Perturber, scratch_size
from shared.models.gpt2 import SHAPES, build, hollow
from shared.models.hub import build_without_weights
from shared.models.model import MODELS
from shared.models.next_token import next_token_loss
from shared.models.packaged import PACKAGED
from shared.randomness.streams import Key

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}  # of a parameter
MOMENT_BYTES = 2 * 4  # of a parameter's means, which stay in float32
GRADIENT_BYTES = 4  # of a parameter's gradient during a step of Adam
WORKING_BYTES = {"float32": 0, "bfloat16": 4}  # of a parameter while it is updated, then rounded
WAYS = ("plain", "query")
SIZE, LENGTH = "200M", 128


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a replica needs, without the activations of a batch."""

    replica: int
    query: int  # added at most during a query with one thread
    adam: int  # replica, moments, and what a step adds


def estimate(layout: Layout, dtype: str) -> MemoryEstimate:
    """Estimate the memory of a replica that trains all of ``layout`` in ``dtype``."""
    each, size = DTYPE_BYTES[dtype], layout.size
    widest = max((p.shape[-1] for p in layout.tensors if len(p.shape) == 2), default=1)
    scratch = min(max(scratch_size(size, threads=1), widest), size)
    tiles = [-(-span.size // TILE) for span in layout.tensors]
    small = TILE * sum(count for count in tiles if count <= SMALL_TILES)
    copies = min(small, max(scratch, size // COPIES_SHARE)) if scratch < size else 0
    return MemoryEstimate(
        replica=each * size,
        query=each * (scratch + copies),
        adam=(each + MOMENT_BYTES + GRADIENT_BYTES + WORKING_BYTES[dtype]) * size,
    )


def shapes_of(name: str) -> tuple[Layout, Any]:
    """The layout of a model's parameters, and its module on the ``meta`` device: no weight is read.

    Raises:
        DataError: the model is neither local nor in reach on the hub.
    """
    if name in MODELS.names():
        with torch.device("meta"):
            module: Any = hollow(SHAPES[name])
    else:  # what is fetched or converted first has weights
        path = str(PACKAGED[name].folder()) if name in PACKAGED else name
        module = build_without_weights(name, path)
    return Layout.of((n, tuple(p.shape)) for n, p in module.named_parameters()), module


def memory() -> list[BenchRow]:
    """Measure each way in its own process; the ratio is the query's extra to the parameters."""
    results = {way: run_apart(__spec__.name, way) for way in WAYS}
    extra = results["query"]["peak"] - results["plain"]["peak"]
    share = extra / results["query"]["parameters"]
    return [
        BenchRow(
            f"{way}, 1x{LENGTH} tokens",
            results[way]["seconds"],
            0.0 if way == "plain" else share,
            f"peak {results[way]['peak'] / 2**20:,.0f} MiB"
            + ("" if way == "plain" else f", extra {100 * share:.1f} % of the parameters' bytes"),
        )
        for way in WAYS
    ]


def _run(way: str) -> dict[str, float]:
    """Evaluate twice in this process: peak resident bytes, the parameters' bytes, seconds."""
    torch.set_num_threads(THREADS)
    model = flatten(build(SIZE, seed=1).module)
    blocks = torch.arange(LENGTH).view(1, -1) * 7919 % 50257
    perturber = Perturber(model, DIRECTIONS["rademacher"](model.layout))
    started = time.perf_counter()
    for scale in (1e-3, -1e-3):
        if way == "plain":
            next_token_loss(model.module, blocks)
        else:
            with perturber.at(Key(1, 1, 0, 0), scale):
                next_token_loss(model.module, blocks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "peak": peak,
        "parameters": 4 * model.layout.parameters,
        "seconds": time.perf_counter() - started,
    }


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1])))
