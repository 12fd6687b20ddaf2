"""What a guard costs a site in time, against the resident worker that code of a run starts.

Both are processes of their own that keep model and data, and get the same rounds in turns. A guard
waits for its raster on top: half of ``answer-raster`` on average, whatever a round takes.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from client.guard.relay import GuardRelay
from client.worker.client import WorkerClient, end, status
from client.worker.paths import WorkerPaths, paths_at, paths_of
from dandelion.bench.rows import BenchRow, alternate
from dandelion.privacy.cost_in_time import RUN, SETTINGS, UNKNOWN
from shared.base.errors import WorkerError
from shared.config.schema import Config
from shared.problem.source import source_digest
from shared.protocol.entry import Entry
from shared.protocol.messages import Measured, Request, decode_reply, encode_request

START_S, RASTER_S = 120.0, 0.05
Train = Callable[[bytes, bytes | None], tuple[bytes, bool]]


def cost_of_guard(turns: int = 31, settings: Mapping[str, object] | None = None) -> list[BenchRow]:
    """Time a site's rounds through its guard, with and without raster, and through a worker.

    Args:
        turns: rounds of each.
        settings: of the runs, in place of those of the benchmark.
    """
    run = Config({**SETTINGS, **(settings or {})}).to_run_config()
    with TemporaryDirectory(prefix="dandelion-") as name, ExitStack() as stack:
        folder = Path(name)
        ways: dict[str, Callable[[], object]] = {}
        ways["worker"] = _rounds(stack.enter_context(_worker(run, folder / "w")))
        for raster in (0.0, RASTER_S):
            guard = _guard(run, folder / f"g{raster:g}", raster)
            ways[f"guard, answer-raster = {raster:g}"] = _rounds(stack.enter_context(guard))
        times = {way: np.array(each) for way, each in alternate(ways, turns).items()}
    note = f"median of {turns} quotients of neighbours; to the worker"
    return [
        BenchRow(f"round through a {way}", float(np.median(each)),
                 float(np.median(each / times["worker"])), note)
        for way, each in times.items()
    ]  # fmt: skip


def _rounds(train: Train) -> Callable[[], Measured]:
    """A function that has the next round measured, always another one at the same parameters."""
    numbers, code = count(1), source_digest("")

    def measure() -> Measured:
        number = next(numbers)
        pauses = [Entry(number - 1, 1.0, (), back_to=number - 2).encode()] if number > 1 else []
        request = Request(number, 0.0, UNKNOWN, RUN, code, pauses)
        reply = decode_reply(train(encode_request(request), None)[0])
        assert isinstance(reply, Measured), "each round follows the last"
        return reply

    return measure


@contextmanager
def _worker(run: Mapping[str, object], store: Path) -> Iterator[Train]:
    """The resident worker of a node without a guard."""
    node = {"site": "a", "store": str(store)}
    try:
        yield WorkerClient(run, node).train
    finally:
        end(paths_of(node))


@contextmanager
def _guard(run: Mapping[str, object], home: Path, raster: float) -> Iterator[Train]:
    """A guard as ``dandelion client guard`` starts it.

    Raises:
        WorkerError: it does not start.
    """
    paths = paths_at(home.with_suffix(".sock"), home)
    command = [sys.executable, "-P", "-m", "dandelion", "client", "guard", "--home", str(home)]
    command += ["--socket", str(paths.socket), "--set", "site=a"]
    root = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(
        [*command, "--set", f"answer-raster={raster}"],
        env={**os.environ, **root}, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            _await(process, paths)
            yield GuardRelay(run, str(paths.socket)).train
        finally:
            process.terminate()


def _await(process: subprocess.Popen[bytes], paths: WorkerPaths) -> None:
    deadline = time.monotonic() + START_S
    while status(paths) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise WorkerError("the guard of the benchmark does not start")
        time.sleep(0.1)
