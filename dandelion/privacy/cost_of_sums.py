"""What sealed sums cost in time and bytes: whole rounds of a federation, in turns with plain ones.

Sites and server share one process. With a trip, an answer comes that long after its request, as
over Flower's wire; without, a round is computing alone. A sealed round is two trips, and one with
``staleness = 1``: the request for its sums rides with that for the next round. Each site has some
109 examples, so that its private batch has the plain round's 14 on average.
"""

import tempfile
import time
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

import numpy as np
from flwr.app import Message

from client.app import app
from client.site.replica_host import forget_hosts
from dandelion.bench.rows import BenchRow
from dandelion.engines.local import LocalGrid, contexts_of
from server.ledger.records import Metrics
from server.ledger.run_folder import open_run
from server.run import train
from shared.config.schema import Config
from shared.protocol.sealed_messages import SEALED, SUM_REPLY, box_bytes
from shared.sealed.committee import usual_size

TRIP_S = 0.6  # from a request to its answer, beside the measuring: Flower's, with our patches
SETTINGS = {
    "dataset": "topics", "partitioner": "iid", "max-samples": 6, "block-size": 32, "num-clients": 4,
    "zo-batch-size": 14, "queries": 16, "num-rounds": 8, "eval-interval": 0, "eval-blocks": 4,
    "snapshot-interval": 0, "save-model": False, "keep-disk": 0, "threads": 1,
}  # fmt: skip
SEALED_TOO = {"privacy": "shared", "privacy-noise": 1.0, "privacy-clip": 40.0}
WAYS: Mapping[str, Mapping[str, object]] = {
    "plain": {"step": "plain"},
    "shared": SEALED_TOO,
    "shared, staleness = 1": {**SEALED_TOO, "staleness": 1},
}
CHECKSUM, SLOT = 4, 4  # bytes


class DistantGrid(LocalGrid):
    """A LocalGrid whose answers come ``trip_s`` seconds after they were made."""

    def __init__(self, config: Config, folder: Path, trip_s: float) -> None:
        contexts = contexts_of(config)
        for context in contexts.values():
            context.node_config["privacy-home"] = str(folder / "privacy")
        super().__init__(app, contexts)
        self._trip_s, self._due = trip_s, dict[str, float]()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages, and note when their answers may be seen."""
        names = list(super().push_messages(messages))
        self._due |= dict.fromkeys(names, time.monotonic() + self._trip_s)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers that have come by now."""
        now = time.monotonic()
        return super().pull_messages([name for name in message_ids if self._due[name] <= now])


def cost_of_sums(
    turns: int = 5, settings: Mapping[str, object] | None = None, trips: Iterable[float] = ()
) -> list[BenchRow]:
    """Time rounds that are plain, and sealed without and with staleness, in turns.

    Args:
        turns: runs of each kind.
        settings: of all runs, in place of those of the benchmark.
        trips: seconds of a trip, each for rows of its own; none: 0 and TRIP_S.
    """
    given, rows = {**SETTINGS, **(settings or {})}, list[BenchRow]()
    for trip_s in [*trips] or [0.0, TRIP_S]:
        metrics: dict[str, list[list[Metrics]]] = {name: [] for name in WAYS}
        for _, (name, more) in product(range(turns), WAYS.items()):
            metrics[name].append(_measure({**given, **more}, trip_s))
        rows += [_row(name, metrics, given, trip_s) for name in WAYS]
    return rows


def _measure(settings: Mapping[str, object], trip_s: float) -> list[Metrics]:
    """The metrics of the rounds of one run, without the first, which builds models."""
    forget_hosts()
    with tempfile.TemporaryDirectory(prefix="dandelion-") as folder:
        config = Config.from_run_config({**settings, "output-dir": folder})
        with open_run(config) as run:
            train(DistantGrid(config, Path(folder), trip_s), run, lambda report, round_: None)
            return list(run.ledger.metrics())[1:]


def _row(
    name: str,
    metrics: Mapping[str, list[list[Metrics]]],
    settings: Mapping[str, object],
    trip_s: float,
) -> BenchRow:
    """Median seconds of a round, the median quotient to plain ones, and bytes beside theory."""
    seconds = {way: [_median(run) for run in runs] for way, runs in metrics.items()}
    ratio = float(np.median(np.array(seconds[name]) / np.array(seconds["plain"])))
    sites, queries = int(str(settings["num-clients"])), int(str(settings["queries"]))
    sent = metrics[name][0][0].bytes_up // sites
    expected = 44 + 4 * queries if name == "plain" else bytes_of_sealed_round(sites, queries)
    note = f"trips of {trip_s:g} s; to plain; {sent:,} bytes up a site, by the formula {expected:,}"
    return BenchRow(f"round, {name}", float(np.median(seconds[name])), ratio, note)


def _median(run: list[Metrics]) -> float:
    return float(np.median([each.seconds for each in run]))


def bytes_of_sealed_round(sites: int, numbers: int) -> int:
    """Mean bytes that a site sends in a round: boxes, and a sum of q numbers if it is a member.

    Args:
        sites: in the roster.
        numbers: q.
    """
    members = usual_size(sites)
    boxes = SEALED.size + members * (SLOT + box_bytes(numbers)) + CHECKSUM
    return boxes + members * (SUM_REPLY.size + 8 * numbers + CHECKSUM) // sites
