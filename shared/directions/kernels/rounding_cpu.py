"""Stochastic rounding to bfloat16 on the CPU: bits are drawn as they are needed, in one pass."""

import numpy as np
from numba import carray, prange
from torch import Tensor

from shared.directions.kernels.compiled import halves_at, kernel, shares, words_at
from shared.directions.kernels.philox_cpu import LOW, draw, key_numbers
from shared.randomness.streams import Key

PER_BLOCK = 8  # numbers that one block of the generator rounds, 16 bits each
EXPONENT, FRACTION = np.uint32(0x7F800000), np.uint32(0x7FFFFF)
QUIET, HALF = np.uint32(0x40), np.uint32(16)
MASK = np.uint32(0xFFFF)


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
                odds = np.uint32(drawn[lane // 2]) >> np.uint32(HALF * (lane % 2)) & MASK
                value = bits[at]
                if value & EXPONENT != EXPONENT:
                    target[at] = np.uint32(value + odds) >> HALF
                elif value & FRACTION:
                    target[at] = value >> HALF | QUIET
                else:
                    target[at] = value >> HALF


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
