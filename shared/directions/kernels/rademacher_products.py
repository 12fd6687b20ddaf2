"""Products of activations with a weight plus signs, which are added while the weight is packed.

A product packs its weight block by block into cache in any case. The signs are added on the way,
and the next block is fetched from memory while this one is multiplied. So a product with a
perturbed weight takes about as long as a plain one. Each sum runs along the inner dimension in
order, so its bits depend on neither the number of threads nor that of rows.

Blocks and panels are those of Goto and van de Geijn, TOMS 34(3), 2008. Addresses count bytes;
strides and sizes count elements.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.nn.functional import pad

from shared.base.flat import TILE, TILE_WORDS, Matrix, ask_for_huge_pages
from shared.directions.kernels.compiled import kernel, shares
from shared.directions.kernels.philox_cpu import key_numbers
from shared.directions.kernels.rademacher_cpu import draw_tile, perturb_
from shared.directions.kernels.tiles import (
    BIT_ELEMENTS,
    COLUMNS,
    LANES,
    ROWS,
    STEPS,
    is_supported,
    multiply_tile,
    perturb_run,
    transpose,
)
from shared.randomness.streams import Key

DEPTH = 256  # of a block: its panels (DEPTH, COLUMNS) stay in the first cache
WIDE = 512  # columns of a block of a weight (k, n)
HIGH = 128  # rows of a block of a weight (n, k)
BLOCK = DEPTH * WIDE  # elements of scratch that a thread takes
FLOAT = 4  # bytes
SIGNATURE = f"void({'int64, ' * 9}uint32[::1], float64, int64, int64)"


@njit(inline="always")
def _draw(start, stop, key):
    """Return the words (tiles, TILE_WORDS) of the tiles that hold these addresses."""
    first, last = start // TILE, (stop - 1) // TILE + 1
    words = np.empty((last - first, TILE_WORDS), np.uint32)
    for tile in range(last - first):
        draw_tile(words[tile], first + tile, key)
    return words


@njit(inline="always")
def _perturb(out, second, w, start, at, words, first, scale):
    """Write run ``at`` of a perturbed weight, half to each address; words are from ``first``."""
    address = start + at
    word = words + 4 * TILE_WORDS * (address // TILE - first // TILE)
    bit = np.uint32(1) << np.uint32(address % TILE // BIT_ELEMENTS)
    perturb_run(out, second, w + FLOAT * at, word, bit, scale)


@njit(inline="always")
def _pack_rows(block, turned, w, start, rows, columns, k, words, first, scale):
    """Perturb a block of a weight (n, k) and pack it, transposed, into panels of COLUMNS rows."""
    depth = columns[1] - columns[0]
    for row in range(rows[0], rows[1], LANES):
        panel = (row - rows[0]) // COLUMNS * COLUMNS * depth + (row - rows[0]) % COLUMNS
        for column in range(columns[0], columns[1], BIT_ELEMENTS):
            for lane in range(LANES):
                target, at = turned + FLOAT * lane * BIT_ELEMENTS, (row + lane) * k + column
                _perturb(target, target + FLOAT * COLUMNS, w, start, at, words, first, scale)
            for part in range(0, BIT_ELEMENTS, LANES):
                out = block + FLOAT * (panel + (column - columns[0] + part) * COLUMNS)
                transpose(out, COLUMNS, turned + FLOAT * part, BIT_ELEMENTS)


@njit(inline="always")
def _pack_columns(block, w, start, rows, columns, n, words, first, scale):
    """Perturb a block of a weight (k, n) and pack it into panels of COLUMNS columns."""
    depth = rows[1] - rows[0]
    for row in range(rows[0], rows[1]):
        for column in range(columns[0], columns[1], BIT_ELEMENTS):
            out = block + FLOAT * ((column - columns[0]) * depth + (row - rows[0]) * COLUMNS)
            second, at = out + FLOAT * depth * COLUMNS, row * n + column
            _perturb(out, second, w, start, at, words, first, scale)


@njit(inline="always")
def _tile(a, k, block, depth, init, ldi, out, n, down, right, ahead, gap):
    """Add the product of ROWS rows of a and a panel; ``down`` and ``right`` say which."""
    row, column = down * ROWS, right * COLUMNS
    panel = block + FLOAT * column * depth
    init, out = init + FLOAT * (row * ldi + column), out + FLOAT * (row * n + column)
    multiply_tile(a + FLOAT * row * k, k, panel, depth, init, ldi, out, n, ahead, gap)


@njit(inline="always")
def _part(span, most, unit):
    """Return the size of about equal parts of ``span``, at most ``most``, in whole units."""
    parts = max(1, (span + most - 1) // most)
    return ((span + parts - 1) // parts + unit - 1) // unit * unit


@kernel(SIGNATURE)
def _linear(out, x, w, bias, scratch, m, n, k, start, key, scale, part, parts):
    """Share ``part`` of x (m, k) times the transpose of a weight (n, k): whole panels of rows."""
    panels, tiles = n // COLUMNS, m // ROWS
    low, high = panels * part // parts * COLUMNS, panels * (part + 1) // parts * COLUMNS
    block, turned = scratch + FLOAT * part * BLOCK, np.empty(LANES * BIT_ELEMENTS, np.float32)
    tall, deep = _part(high - low, HIGH, COLUMNS), _part(k, DEPTH, BIT_ELEMENTS)
    for top in range(low, high, tall):
        rows, first = (top, min(top + tall, high)), start + top * k
        words = _draw(first, start + rows[1] * k, key)
        for left in range(0, k, deep):
            columns = (left, min(left + deep, k))
            drawn, small = words.ctypes.data, np.float32(scale)
            _pack_rows(block, turned.ctypes.data, w, start, rows, columns, k, drawn, first, small)
            c = out + FLOAT * top
            init, ldi = (c, n) if left else (bias + FLOAT * top, 0)
            a, depth, wide = x + FLOAT * left, columns[1] - left, (rows[1] - top) // COLUMNS
            ahead = w + FLOAT * (top * k + columns[1] if columns[1] < k else rows[1] * k)
            for down in range(tiles):
                for right in range(wide):  # meanwhile rows of the next block, two at a time
                    pair = (down * wide + right) * (rows[1] - top) // 2 // (tiles * wide)
                    line = ahead + FLOAT * pair * 2 * k
                    _tile(a, k, block, depth, init, ldi, c, n, down, right, line, k)


@kernel(SIGNATURE)
def _matmul(out, x, w, bias, scratch, m, n, k, start, key, scale, part, parts):
    """Share ``part`` of x (m, k) times a weight (k, n): whole runs of BIT_ELEMENTS columns."""
    runs, tiles = n // BIT_ELEMENTS, m // ROWS
    low, high = runs * part // parts * BIT_ELEMENTS, runs * (part + 1) // parts * BIT_ELEMENTS
    block = scratch + FLOAT * part * BLOCK
    wide, deep = _part(high - low, WIDE, BIT_ELEMENTS), _part(k, DEPTH, STEPS)
    for top in range(0, k, deep):
        rows, first = (top, min(top + deep, k)), start + top * n
        words = _draw(first, start + rows[1] * n, key)
        for left in range(low, high, wide):
            columns = (left, min(left + wide, high))
            drawn, small = words.ctypes.data, np.float32(scale)
            _pack_columns(block, w, start, rows, columns, n, drawn, first, small)
            c = out + FLOAT * left
            init, ldi = (c, n) if top else (bias + FLOAT * left, 0)
            a, depth, panels = x + FLOAT * top, rows[1] - top, (columns[1] - left) // COLUMNS
            following = top * n + columns[1] if columns[1] < high else rows[1] * n + low
            for right in range(panels):
                for down in range(tiles):  # meanwhile rows of the next block, one at a time
                    row = (right * tiles + down) * depth // (tiles * panels)
                    line = w + FLOAT * (following + row * n)
                    gap = (columns[1] - left) // 2
                    _tile(a, k, block, depth, init, ldi, c, n, down, right, line, gap)


@kernel(SIGNATURE, parallel=True)
def _linear_in_parallel(out, x, w, bias, scratch, m, n, k, start, key, scale, _, parts):
    for share in prange(parts):
        _linear(out, x, w, bias, scratch, m, n, k, start, key, scale, share, parts)


@kernel(SIGNATURE, parallel=True)
def _matmul_in_parallel(out, x, w, bias, scratch, m, n, k, start, key, scale, _, parts):
    for share in prange(parts):
        _matmul(out, x, w, bias, scratch, m, n, k, start, key, scale, share, parts)


PRODUCTS = {True: (_linear, _linear_in_parallel), False: (_matmul, _matmul_in_parallel)}


def fits(x: Tensor, matrix: Matrix, scratch: Tensor) -> bool:
    """Tell whether the kernels can take this shape and this scratch on this processor."""
    del x  # any number of rows
    height, width = matrix.shape
    if matrix.transposed:
        shaped = height >= COLUMNS and width % BIT_ELEMENTS == 0
    else:
        shaped = height % STEPS == 0 and width % BIT_ELEMENTS == 0
    return shaped and is_supported() and scratch.numel() >= BLOCK


def product(
    x: Tensor, matrix: Matrix, bias: Tensor | None, key: Key, scale: float, scratch: Tensor
) -> Tensor:
    """Return x (m, k) times the perturbed matrix, plus bias (n,), as (m, n)."""
    m, (k, n) = x.shape[0], matrix.shape[::-1] if matrix.transposed else matrix.shape
    rows = -(-m // ROWS) * ROWS
    a = x.contiguous() if rows == m else pad(x, (0, 0, 0, rows - m))
    out = ask_for_huge_pages(x.new_empty(rows, n))
    b = x.new_zeros(n) if bias is None else bias.contiguous()
    addresses = [tensor.data_ptr() for tensor in (out, a, matrix.values, b, scratch)]
    numbers = np.array(key_numbers(key), np.uint32)
    pieces = n // (COLUMNS if matrix.transposed else BIT_ELEMENTS)
    parts = shares(rows * n * k, min(pieces, scratch.numel() // BLOCK))
    serial, parallel = PRODUCTS[matrix.transposed]
    kernel = serial if parts == 1 else parallel
    kernel(*addresses, rows, n, k, matrix.start, numbers, scale, 0, parts)
    if matrix.transposed and n % COLUMNS:
        _multiply_rest(out, a, matrix, b, (key, scale))
    return out[:m]


def _multiply_rest(
    out: Tensor, a: Tensor, matrix: Matrix, b: Tensor, point: tuple[Key, float]
) -> None:
    """Multiply by the last rows of a weight (n, k), which fill no panel."""
    n, k = matrix.shape
    first = n // COLUMNS * COLUMNS
    block = a.new_empty((n - first) * k)
    perturb_(block, matrix.values[first * k :], matrix.start + first * k, *point)
    torch.addmm(b[first:], a, block.view(-1, k).t(), out=out[:, first:])
