"""Rivals timed in turns: a noisy machine slows all of them alike, and medians are compared."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

THREADS = 2  # of every benchmark that computes with torch


@dataclass(frozen=True)
class Row:
    """One line of a benchmark's table."""

    name: str
    seconds: float  # of the unit that ``note`` names
    ratio: float  # to the row that ``note`` names; below 1 is faster
    note: str


@contextmanager
def on_threads(count: int = THREADS) -> Iterator[None]:
    """Let torch compute on so many threads, and afterwards on as many as before."""
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
        The seconds of each call by name; the same position in two lists is the same turn, so the
        median of their quotients is free of a machine's slow drift.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = perf_counter()
            function()
            if turn:
                times[name].append(perf_counter() - start)
    return times
