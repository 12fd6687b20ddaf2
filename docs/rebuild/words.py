"""Random words and signs of a key, and the types that all modules share."""

from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
Array = np.ndarray[Any, Any]
Key = tuple[int, int, int, int]  # seed, round word, slot word, index word
TILE = 2048
F32 = np.float32


class LayoutError(Exception):
    """The file is no ledger of this layout, or its run has a part that is not on the page."""


def up_to_tile(address: int) -> int:
    """The next multiple of a tile."""
    return -(-address // TILE) * TILE


def words(key: Key, blocks: Array) -> Array:
    """The four words (n, 4) of these blocks (n,) of a key: Philox4x32-10."""
    seed, round_word, slot_word, index_word = key
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0 = blocks.astype(np.uint64)
    c1, c2, c3 = (np.full(len(blocks), w, np.uint64) for w in (index_word, round_word, slot_word))
    k0, k1 = seed % 2**32, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & low
        c2, c3 = (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack([c0, c1, c2, c3], 1)


def signs(key: Key, first: int, count: int) -> Floats:
    """The signs (count,) from address ``first``, the start of a tile."""
    tiles = up_to_tile(count) // TILE
    drawn = words(key, np.arange(16 * tiles) + first // TILE * 16)
    lanes = drawn.reshape(tiles, 16, 4).transpose(0, 2, 1).reshape(tiles, 1, 64)
    bits = (lanes >> np.arange(32, dtype=np.uint64)[None, :, None]) & np.uint64(1)
    return (1 - 2 * bits.astype(F32)).ravel()[:count]


def bits_set(numbers: Array) -> Array:
    """How many bits of each number are set."""
    counts, rest = np.zeros_like(numbers), numbers.copy()
    while rest.any():
        counts += rest & 1
        rest >>= 1
    return counts
