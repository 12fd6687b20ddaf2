"""Initial weights that are the same on every machine and close to normal."""

from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from os import cpu_count

import numpy as np
import torch
from numpy.typing import NDArray

from shared.directions.backends import words_on
from shared.randomness.streams import Key

TASK_WEIGHTS = 1 << 16  # of one thread's task: its temporaries stay in a core's cache

_MEAN = 4 * 0xFFFF // 2
_DEVIATION = sqrt(4 * (2**32 - 1) / 12)


def fill_normal_(weights: NDArray[np.float32], key: Key, std: float) -> None:
    """Fill ``weights`` (n,) with numbers of mean 0 and deviation ``std``.

    torch's own ``normal_`` gives other numbers with other vector instructions and on other devices.
    Here a weight is the sum of four uniform 16-bit integers (Irwin 1927, Hall 1927) less its mean,
    exact, times one float32, rounded once. It lies within 3.46 ``std``; excess kurtosis
    is -0.3. A weight takes two words of ``key``; any part of a tensor can be drawn alone.
    """
    scale = np.float32(std / _DEVIATION)

    def fill(start: int) -> None:
        part = weights[start : start + TASK_WEIGHTS]
        blocks = torch.arange(start // 2, -(-(start + len(part)) // 2))
        drawn = words_on(key, blocks).numpy()  # (4, n): two words for a weight
        halves = (drawn & 0xFFFF) + (drawn >> 16)
        sums = (halves[::2] + halves[1::2]).T.reshape(-1)[: len(part)]
        part[:] = (sums - _MEAN).astype(np.float32) * scale

    starts = range(0, len(weights), TASK_WEIGHTS)
    if len(starts) <= 1:  # a thread takes longer to start than a small tensor to fill
        for start in starts:
            fill(start)
        return
    with ThreadPoolExecutor(cpu_count()) as pool:
        list(pool.map(fill, starts))
