"""Causal self-attention of one example in compiled code.

Scores lie the other way round, keys down and COLUMNS queries across. So a softmax goes down
columns, which fill registers whatever the number of keys, and its result is a packed matrix for the
product with the values.
"""

import numpy as np
from numba import njit

from shared.directions.kernels.tiles import COLUMNS, LANES, ROWS, multiply_tile, transpose
from shared.models.kernels.elementary import MASKED, weigh_columns_
from shared.models.kernels.products import FLOAT, matrix_at, pack_rows


def attention_room(rows, size):
    """Elements of room that ``attend`` needs for an example of so many rows."""
    return size * (-(-rows // LANES) * LANES) + COLUMNS * (2 * size + rows)


@njit
def attend(out, qkv, zeros, room, rows, heads, size):
    """Write what each token takes from itself and those before it, out (rows, heads * size).

    qkv (rows, 3 * heads * size) has queries, keys and values. ``rows`` is a multiple of ROWS, size
    one of LANES. ``out`` is written, and the values are read, up to a multiple of COLUMNS rows.
    ``room`` is overwritten (``attention_room``), ``zeros`` has COLUMNS of them.
    """
    width, deep = heads * size, -(-rows // LANES) * LANES
    turned = room  # values (size, deep)
    queries = turned + FLOAT * size * deep  # (size, COLUMNS)
    mixed = queries + FLOAT * size * COLUMNS  # (size, COLUMNS)
    scores = mixed + FLOAT * size * COLUMNS  # (keys, COLUMNS)
    factors = np.empty(COLUMNS, np.float32)
    stride, scale = 3 * width, np.float32(1) / np.sqrt(np.float32(size))
    for head in range(heads):
        q, target = qkv + FLOAT * head * size, out + FLOAT * head * size
        k, v = q + FLOAT * width, q + FLOAT * 2 * width
        _turn(turned, deep, v, stride, deep, size)
        for left in range(0, rows, COLUMNS):
            keys = min(rows, left + COLUMNS)
            pack_rows(queries, q + FLOAT * left * stride, keys - left, size, stride)
            for top in range(0, keys, ROWS):
                line, part = k + FLOAT * top * stride, scores + FLOAT * top * COLUMNS
                multiply_tile(line, stride, queries, size, zeros, 0, part, COLUMNS, queries, 0)
            weights = matrix_at(scores, keys, COLUMNS)
            for key in range(left + 1, keys):
                weights[key, : key - left] = MASKED
            weigh_columns_(weights, scale, factors)
            for top in range(0, size, ROWS):
                line, part = turned + FLOAT * top * deep, mixed + FLOAT * top * COLUMNS
                multiply_tile(line, deep, scores, keys, zeros, 0, part, COLUMNS, scores, 0)
            blend = matrix_at(mixed, size, COLUMNS)
            for row in range(size):
                for i in range(COLUMNS):
                    blend[row, i] *= factors[i]
            _turn(target + FLOAT * left * width, width, mixed, COLUMNS, size, COLUMNS)


@njit(inline="always")
def _turn(out, ldo, source, lds, rows, columns):
    """Write the transpose of source (rows, columns), both whole lanes."""
    for top in range(0, rows, LANES):
        for left in range(0, columns, LANES):
            target, origin = FLOAT * (left * ldo + top), FLOAT * (top * lds + left)
            transpose(out + target, ldo, source + origin, lds)
