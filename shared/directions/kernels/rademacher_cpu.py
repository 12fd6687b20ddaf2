"""Sign directions on the CPU: a tile's signs are drawn and added while the tile is in cache.

Each thread takes consecutive whole tiles, so no bit depends on how many threads there are.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numba import carray, njit, prange
from torch import Tensor

from shared.base.flat import TILE, TILE_BLOCKS, TILE_WORDS
from shared.directions.kernels.compiled import floats_at, integers_at, kernel, prefetch, shares
from shared.directions.kernels.philox_cpu import LOW, draw, key_numbers
from shared.randomness.streams import Key

LINE = 16  # elements of a cache line


@njit(inline="always")
def draw_tile(words, tile, key):
    """Fill ``words`` (64,): word w of the tile's block b at w * 16 + b."""
    for block in range(TILE_BLOCKS):
        drawn = draw(np.uint64(tile * TILE_BLOCKS + block) & LOW, key)
        for i in range(4):
            words[i * TILE_BLOCKS + block] = np.uint32(drawn[i])


@njit(inline="always")
def _write_tile(out, source, words, scale, ahead):
    """Write source + scale * z for a whole tile; ``ahead`` fetches the tile that follows."""
    bit, following = np.uint32(1), np.int64(source.ctypes.data) + 4 * TILE
    for row in range(0, TILE, TILE_WORDS):
        if ahead:
            for line in range(0, TILE_WORDS, LINE):
                prefetch(following + 4 * (row + line))
        for lane in range(TILE_WORDS):
            out[row + lane] = source[row + lane] + (-scale if words[lane] & bit else scale)
        bit = np.uint32(bit << np.uint32(1))


@njit(inline="always")
def _write_part(out, source, skip, words, scale):
    """Write source + scale * z for elements ``skip`` onwards of a tile, row by row."""
    done = 0
    while done < out.size:
        row, first = (skip + done) // TILE_WORDS, (skip + done) % TILE_WORDS
        bit, count = np.uint32(1 << row), min(TILE_WORDS - first, out.size - done)
        for i in range(np.uint64(count)):  # unsigned: an index that may be negative stops vectors
            at, sign = np.uint64(done) + i, words[np.uint64(first) + i] & bit
            out[at] = source[at] + (-scale if sign else scale)
        done += count


@njit(inline="always")
def _add_run(flat, start, keys, scales):
    """Add scales[k] * z(keys[k]) to ``flat`` (n,) at ``start``: every key, then the next tile."""
    words = np.empty(TILE_WORDS, np.uint32)
    for tile in range(start // TILE, (start + flat.size + TILE - 1) // TILE):
        first, stop = max(tile * TILE, start), min((tile + 1) * TILE, start + flat.size)
        piece = flat[first - start : stop - start]
        for k in range(scales.size):
            draw_tile(words, tile, keys[k])
            if piece.size == TILE:
                _write_tile(piece, piece, words, scales[k], k == 0)
            else:
                _write_part(piece, piece, first - tile * TILE, words, scales[k])


@njit(inline="always")
def _perturb_run(out, source, start, key, scale):
    """Write source + scale * z(key) into ``out`` (n,) at ``start``."""
    words = np.empty(TILE_WORDS, np.uint32)
    for tile in range(start // TILE, (start + out.size + TILE - 1) // TILE):
        first, stop = max(tile * TILE, start), min((tile + 1) * TILE, start + out.size)
        target, origin = out[first - start : stop - start], source[first - start : stop - start]
        draw_tile(words, tile, key)
        if target.size == TILE:
            _write_tile(target, origin, words, scale, True)
        else:
            _write_part(target, origin, first - tile * TILE, words, scale)


@njit(inline="always")
def _share(start, size, part, parts):
    """Return where share ``part`` of the elements begins and ends: whole tiles, the ends apart."""
    first = start // TILE
    tiles = (start + size + TILE - 1) // TILE - first
    low, high = first + tiles * part // parts, first + tiles * (part + 1) // parts
    return max(low * TILE - start, 0), min(high * TILE - start, size)


@kernel("void(int64, int64, int64, uint32[:, ::1], float32[::1], int64, int64)")
def _add(flat, size, start, keys, scales, part, parts):
    low, high = _share(start, size, part, parts)
    _add_run(carray(floats_at(flat), size)[low:high], start + low, keys, scales)


@kernel("void(int64, int64, int64, int64, uint32[::1], float64, int64, int64)")
def _perturb(out, source, size, start, key, scale, part, parts):
    low, high = _share(start, size, part, parts)
    target, origin = carray(floats_at(out), size), carray(floats_at(source), size)
    _perturb_run(target[low:high], origin[low:high], start + low, key, np.float32(scale))


@kernel("void(int64, int64, int64, int64, int64, uint32[:, ::1], float32[::1])")
def _add_rows(rows, width, ids, count, start, keys, scales):
    matrix, chosen = carray(floats_at(rows), (count, width)), carray(integers_at(ids), count)
    for i in range(count):
        _add_run(matrix[i], start + chosen[i] * width, keys, scales)


@kernel("void(int64, int64, int64, uint32[:, ::1])")
def _add_each(rows, width, start, keys):
    matrix, one = carray(floats_at(rows), (keys.shape[0], width)), np.ones(1, np.float32)
    for k in range(keys.shape[0]):
        _add_run(matrix[k], start, keys[k : k + 1], one)


@kernel("void(int64, int64, int64, uint32[:, ::1], float32[::1], int64)", parallel=True)
def _add_in_parallel(flat, size, start, keys, scales, parts):
    for part in prange(parts):
        _add(flat, size, start, keys, scales, part, parts)


@kernel("void(int64, int64, int64, int64, uint32[::1], float64, int64)", parallel=True)
def _perturb_in_parallel(out, source, size, start, key, scale, parts):
    for part in prange(parts):
        _perturb(out, source, size, start, key, scale, part, parts)


def add_to_(flat: Tensor, keys: Sequence[Key], coefficients: Sequence[float], start: int) -> None:
    """Add sum of coefficients[k] * z(keys[k]) to ``flat`` (n,) at address ``start``."""
    numbers = np.array([key_numbers(key) for key in keys], np.uint32)
    scales = np.array(coefficients, np.float32)
    where = flat.data_ptr(), flat.numel(), start
    threads = shares(flat.numel() * len(keys), flat.numel() // TILE)
    if threads == 1:
        _add(*where, numbers, scales, 0, 1)
    else:
        _add_in_parallel(*where, numbers, scales, threads)


def perturb_(out: Tensor, source: Tensor, start: int, key: Key, scale: float) -> None:
    """Write source + scale * z(key) into ``out`` (n,), which lies at address ``start``."""
    where = out.data_ptr(), source.data_ptr(), out.numel(), start
    numbers = np.array(key_numbers(key), np.uint32)
    threads = shares(out.numel(), out.numel() // TILE)
    if threads == 1:
        _perturb(*where, numbers, scale, 0, 1)
    else:
        _perturb_in_parallel(*where, numbers, scale, threads)


def add_rows_(rows: Tensor, ids: Tensor, start: int, key: Key, scale: float) -> None:
    """Add scale * z to ``rows`` (m, width): row i holds row ids[i] of the matrix at ``start``."""
    numbers, scales = np.array([key_numbers(key)], np.uint32), np.array([scale], np.float32)
    chosen = ids.to(torch.int64).contiguous()
    where = rows.data_ptr(), rows.shape[1], chosen.data_ptr(), len(chosen), start
    _add_rows(*where, numbers, scales)


def add_each_(rows: Tensor, keys: Sequence[Key], start: int) -> None:
    """Add z(keys[k]) at address ``start`` to row k of ``rows`` (K, n)."""
    numbers = np.array([key_numbers(key) for key in keys], np.uint32)
    _add_each(rows.data_ptr(), rows.shape[1], start, numbers)
