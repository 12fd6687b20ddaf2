"""Philox4x32-10, a random generator whose words are a pure function of a counter and a seed.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11. It uses
integers only, so every machine draws the same words. Every kernel must equal this reference.
"""

import numpy as np
from numpy.typing import NDArray

from shared.randomness.streams import Key

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the two key words after every round

_LOW = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(32)


def philox4x32(counters: NDArray[np.uint32], seed: int) -> NDArray[np.uint32]:
    """Return the four words (n, 4) of each counter (n, 4) under a 64-bit seed."""
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"a seed of 64 bits expected, got {seed}")
    c0, c1, c2, c3 = counters.T.astype(np.uint64)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(ROUNDS):
        p0, p1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c2 = (p1 >> _HIGH) ^ c1 ^ np.uint64(k0), (p0 >> _HIGH) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def words(key: Key, blocks: NDArray[np.integer] | range) -> NDArray[np.uint32]:
    """Return the words (n, 4) of the blocks (n,) of a key.

    Raises:
        ValueError: the key's seed does not fit into 64 bits.
    """
    counters = np.empty((len(blocks), 4), np.uint32)
    counters[:, 0] = blocks
    counters[:, 1:] = key.index, key.round, key.slot
    return philox4x32(counters, key.seed)
