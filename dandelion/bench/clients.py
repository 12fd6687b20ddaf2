"""Rounds of many virtual clients: time and memory grow with the examples, not with the clients."""

import json
import resource
import sys
import tempfile
import time
from itertools import pairwise
from statistics import median

from dandelion.bench.rows import BenchRow, run_apart

ROUNDS = 9  # the first (introductions) and the last (evaluation) are not counted
CASES = {  # clients, examples of each, whether they share forward passes
    "10 clients x 100 examples": (10, 100, False),
    "1,000 clients x 1 example, merged": (1000, 1, True),
    "1,000 clients x 1 example, one by one": (1000, 1, False),
}


def clients() -> list[BenchRow]:
    """Median seconds of a round of the local engine; each case in a process of its own.

    The ratio is to the first case, which has as many examples; the note has peak memory.
    """
    results = {
        name: run_apart(__spec__.name, str(clients), str(examples), str(int(merge)))
        for name, (clients, examples, merge) in CASES.items()
    }
    base = next(iter(results.values()))
    return [
        BenchRow(
            name,
            each["seconds"],
            each["seconds"] / base["seconds"],
            f"peak {each['peak'] / 2**20:,.0f} MiB, {(each['peak'] - base['peak']) / 2**20:+,.0f} "
            "to the first",
        )
        for name, each in results.items()
    ]


def time_rounds(clients: int, examples: int, merge: bool, rounds: int) -> float:
    """Train in this process; return the median seconds of a round."""
    from dandelion.engines.local import run_local
    from server.reporting.report import Report
    from shared.config.schema import Config

    ends: list[float] = []

    def note_end(report: Report, round_: int) -> None:
        ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory(prefix="dandelion-") as folder:
        settings = {
            "num-clients": clients,
            "zo-batch-size": examples,
            "merge-clients": merge,
            "partitioner": "iid",
            "queries": 1,
            "num-rounds": rounds,
            "eval-interval": 0,
            "snapshot-interval": 0,
            "save-model": False,
            "output-dir": folder,
        }
        run_local(Config(settings), note_end)
    seconds = [b - a for a, b in pairwise(ends)]
    return median(seconds[1:-1])


def _run(clients: int, examples: int, merge: bool) -> dict[str, float]:
    seconds = time_rounds(clients, examples, merge, ROUNDS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak": peak}


if __name__ == "__main__":
    print(json.dumps(_run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1")))
