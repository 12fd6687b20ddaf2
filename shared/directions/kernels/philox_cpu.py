"""Philox4x32-10 on the CPU, and the stochastic rounding to bfloat16 that draws its bits from it.

The 32-bit words are kept in 64-bit integers, because vector units multiply those. Rounding draws
the bits of a number when it comes to it, so it takes one pass over memory.
"""

import numpy as np
import torch
from numba import carray, njit, prange
from torch import Tensor

from shared.directions.kernels.compiled import halves_at, integers_at, kernel, shares, words_at
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


PER_BLOCK = 8  # numbers that one block of the generator rounds, 16 bits each
EXPONENT, FRACTION = np.uint32(0x7F800000), np.uint32(0x7FFFFF)  # of a float32
QUIET, HALF_BITS, LOW_HALF = np.uint32(0x40), np.uint32(16), np.uint32(0xFFFF)


@kernel("void(int64, int64, int64, int64, uint32[::1], int64, int64)")
def _round(out, values, size, start, key, part, parts):
    """Round this share of the numbers; shares begin at whole blocks."""
    target, bits = carray(halves_at(out), size), carray(words_at(values), size)
    first, stop = start // PER_BLOCK, (start + size + PER_BLOCK - 1) // PER_BLOCK
    low, high = first + (stop - first) * part // parts, first + (stop - first) * (part + 1) // parts
    for block in range(low, high):
        drawn = draw(np.uint64(block) & LOW, key)
        for lane in range(PER_BLOCK):
            at = block * PER_BLOCK + lane - start
            if 0 <= at < size:
                odds = np.uint32(drawn[lane // 2]) >> np.uint32(HALF_BITS * (lane % 2)) & LOW_HALF
                value = bits[at]
                if value & EXPONENT != EXPONENT:
                    target[at] = np.uint32(value + odds) >> HALF_BITS
                elif value & FRACTION:
                    target[at] = value >> HALF_BITS | QUIET
                else:
                    target[at] = value >> HALF_BITS


@kernel("void(int64, int64, int64, int64, uint32[::1], int64)", parallel=True)
def _round_in_parallel(out, values, size, start, key, parts):
    for part in prange(parts):
        _round(out, values, size, start, key, part, parts)


def round_(out: Tensor, values: Tensor, key: Key, start: int) -> None:
    """Round ``values`` (n,) float32, which begin at ``start``, into ``out`` (n,) bfloat16."""
    where = out.data_ptr(), values.data_ptr(), values.numel(), start
    numbers = np.array(key_numbers(key), np.uint32)
    threads = shares(values.numel(), values.numel() // PER_BLOCK)
    if threads == 1:
        _round(*where, numbers, 0, 1)
    else:
        _round_in_parallel(*where, numbers, threads)
