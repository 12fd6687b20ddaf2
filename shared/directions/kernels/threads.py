"""Numba's threads: as many as torch uses, and launched without changing how many torch uses."""

from functools import cache

import numba
import torch

PARALLEL_FROM = 1 << 17  # additions: below, a launch costs more than a second thread saves


@cache
def most_threads() -> int:
    """Launch numba's threads and return how many there are: one where only its work queue loads.

    The work queue ends the process when two Python threads use it at once, and was no faster than
    one thread when measured; OpenMP and TBB are safe. Numba's launch sets the number of threads of
    the OpenMP runtime that it shares with torch, so torch's own number is put back.
    """
    before = torch.get_num_threads()
    numba.set_num_threads(numba.get_num_threads())
    torch.set_num_threads(before)
    safe = numba.threading_layer() in ("omp", "tbb")
    return int(numba.config.NUMBA_NUM_THREADS) if safe else 1


def shares(additions: int, pieces: int) -> int:
    """Return how many threads share these additions to so many pieces, and tell numba."""
    if additions < PARALLEL_FROM or (wanted := torch.get_num_threads()) == 1:
        return 1
    threads = max(1, min(wanted, most_threads(), pieces))
    numba.set_num_threads(threads)  # for launches from this Python thread
    return threads
