"""Peak memory of a query over that of a plain forward, each in a process of its own."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from dandelion.bench.rows import THREADS, Row

WAYS = ("plain", "query")
SIZE, LENGTH = "200M", 128


def memory() -> list[Row]:
    """Seconds of each process; the ratio is the query's extra over the parameters' bytes."""
    found = {way: _measured(way) for way in WAYS}
    extra = found["query"]["peak"] - found["plain"]["peak"]
    share = extra / found["query"]["parameters"]
    return [
        Row(
            f"{way}, 1x{LENGTH} tokens",
            found[way]["seconds"],
            0.0 if way == "plain" else share,
            f"peak {found[way]['peak'] / 2**20:,.0f} MiB"
            + ("" if way == "plain" else f", extra {100 * share:.1f} % of the parameters' bytes"),
        )
        for way in WAYS
    ]


def _measured(way: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, way],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    read: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return read


def _run(way: str) -> dict[str, float]:
    """Evaluate twice in this process; peak resident bytes, parameters' bytes, seconds."""
    import torch

    from shared.base.flat import flatten
    from shared.directions import DIRECTIONS
    from shared.estimation.perturber import Perturber
    from shared.models.gpt2 import build
    from shared.models.next_token import next_token_loss
    from shared.randomness.streams import Key

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
    bytes_ = 4 * model.layout.parameters
    return {"peak": peak, "parameters": bytes_, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1])))
