"""Rows of a benchmark's table, and how rivals are timed: in turns, or each in its own process."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

THREADS = 2  # of every benchmark that computes with torch


@dataclass(frozen=True)
class BenchRow:
    """One line of a benchmark's table."""

    name: str
    seconds: float  # of the unit that ``note`` names
    ratio: float  # to the row that ``note`` names; below 1 is faster
    note: str


@contextmanager
def on_threads(count: int = THREADS) -> Iterator[None]:
    """Let torch compute with ``count`` threads, and afterwards with as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def alternate(
    functions: dict[str, Callable[[], object]], repeats: int = 7
) -> dict[str, list[float]]:
    """Call every function in turn, ``repeats`` times after a call that is not counted.

    Returns:
        The seconds of each call by name. The same position in two lists is the same turn, so a
        noisy machine slows both, and the median of their quotients is free of its slow drift.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = perf_counter()
            function()
            if turn:
                times[name].append(perf_counter() - start)
    return times


def run_apart(module: str, *words: str) -> dict[str, float]:
    """Run ``python -m module words…`` in a process of its own; return the JSON of its last line.

    Raises:
        CalledProcessError: the process failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers
