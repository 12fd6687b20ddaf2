"""Philox4x32-10 on the CPU: 32-bit words in 64-bit integers, as vector units multiply them."""

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from shared.directions.kernels.compiled import integers_at, kernel
from shared.randomness.philox import MULTIPLIERS, ROUNDS, WEYL
from shared.randomness.streams import Key

LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
M0, M1 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
W0, W1 = np.uint64(WEYL[0]), np.uint64(WEYL[1])


def key_numbers(key: Key) -> tuple[int, int, int, int, int]:
    """Return a key as five 32-bit numbers: the seed's low and high half, index, round and slot."""
    return key.seed & 0xFFFFFFFF, key.seed >> 32, key.index, key.round, key.slot


@njit(inline="always")
def draw(block, key):
    """Return the four words, each as uint64, of one block of a key's five numbers (5,)."""
    c0, c1, c2, c3 = np.uint64(block), np.uint64(key[2]), np.uint64(key[3]), np.uint64(key[4])
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(ROUNDS):
        p0, p1 = c0 * M0, c2 * M1
        c0, c2 = (p1 >> HALF) ^ c1 ^ k0, (p0 >> HALF) ^ c3 ^ k1
        c1, c3 = p1 & LOW, p0 & LOW
        k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
    return c0, c1, c2, c3


@kernel("void(int64, int64, int64, uint32[::1])")
def _words(out, blocks, count, key):
    """Write the words (4, count) of the blocks (count,)."""
    drawn, chosen = carray(integers_at(out), (4, count)), carray(integers_at(blocks), count)
    for i in range(count):
        c0, c1, c2, c3 = draw(np.uint64(chosen[i]) & LOW, key)
        drawn[0, i], drawn[1, i], drawn[2, i], drawn[3, i] = c0, c1, c2, c3


def words(key: Key, blocks: Tensor) -> Tensor:
    """Return the words (4, n) as int64 of these blocks (n,) of a key."""
    chosen = blocks.contiguous()
    drawn = torch.empty((4, chosen.numel()), dtype=torch.int64)
    numbers = np.array(key_numbers(key), np.uint32)
    _words(drawn.data_ptr(), chosen.data_ptr(), chosen.numel(), numbers)
    return drawn
