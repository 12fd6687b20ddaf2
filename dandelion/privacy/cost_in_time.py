"""What ``privacy = local`` costs a site in time: its part of a round, with and without, in turns.

A private round draws its batch from a secret, clips each example's numbers, adds exact noise and
commits an event to the budget. Its batch is of random size; 14 of 438 examples are chosen so
that it has the plain round's size on average.
"""

import tempfile
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import numpy as np

from client.site.replica_host import ReplicaHost
from client.site.run_settings import read_settings
from dandelion.bench.rows import BenchRow, alternate
from shared.protocol.entry import Entry
from shared.protocol.messages import Measured, Request

SETTINGS = {
    "dataset": "topics", "partitioner": "iid", "max-samples": 6, "block-size": 32,
    "zo-batch-size": 14, "num-rounds": 1000, "step": "plain", "keep-disk": 0,
}  # fmt: skip
PRIVATE = {"privacy": "local", "privacy-noise": 1.0, "privacy-clip": 40.0}
UNKNOWN = bytes(16)
RUN = bytes(range(16))


def cost_in_time(turns: int = 31, settings: Mapping[str, object] | None = None) -> list[BenchRow]:
    """Time a site's part of a round, plain and private, in turns.

    Args:
        turns: rounds of each kind.
        settings: of both runs, in place of those of the benchmark.
    """
    with tempfile.TemporaryDirectory(prefix="dandelion-") as folder:
        given = {**SETTINGS, **(settings or {})}
        ways = {
            "plain": _rounds(given, Path(folder)),
            "local": _rounds({**given, **PRIVATE}, Path(folder)),
        }
        times = alternate(ways, turns)
    plain, local = (float(np.median(times[name])) for name in ways)
    quotients = np.array(times["local"]) / np.array(times["plain"])
    note = f"median of {turns} quotients of neighbours; to plain"
    return [
        BenchRow("round of a site, plain", plain, 1.0, "batch drawn by a public seed"),
        BenchRow("round of a site, privacy = local", local, float(np.median(quotients)), note),
    ]


def _rounds(settings: Mapping[str, object], folder: Path) -> Callable[[], object]:
    """A function that measures the next round of a site: always another one, never repeated."""
    node = {"site": "a", "privacy-home": str(folder / "privacy")}
    host, numbers = ReplicaHost(read_settings(settings, node)[0]), count(1)

    def measure() -> Measured:
        number = next(numbers)  # a pause before it: the same parameters, another round
        pauses = [Entry(number - 1, 1.0, (), back_to=number - 2).encode()] if number > 1 else []
        reply = host.train(node, Request(number, 0.0, UNKNOWN, RUN, UNKNOWN, pauses), None)
        assert isinstance(reply, Measured), "each round follows the last"
        return reply

    return measure
