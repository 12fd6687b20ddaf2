"""Products of rows with packed matrices, and how matrices are packed.

A packed matrix (k, n) is panels of COLUMNS columns, one after the other, each (k, COLUMNS); missing
columns are 0. Sums run along k in order, so a row's product depends on that row alone. Addresses
count bytes, strides count elements.
"""

import numpy as np
from numba import carray, njit

from shared.directions.kernels.compiled import floats_at
from shared.directions.kernels.tiles import COLUMNS, LANES, ROWS, multiply_tile, transpose

FLOAT = 4  # bytes


@njit(inline="always")
def vector_at(address, size):
    """The float32 (size,) at an address."""
    return carray(floats_at(address), size)


@njit(inline="always")
def matrix_at(address, rows, columns):
    """The float32 (rows, columns) at an address."""
    return carray(floats_at(address), (rows, columns))


@njit
def pack_columns(out, w, k, n, stride):
    """Pack a matrix (k, n) whose rows are ``stride`` apart."""
    for left in range(0, n, COLUMNS):
        panel, wide = matrix_at(out + FLOAT * left * k, k, COLUMNS), min(COLUMNS, n - left)
        for row in range(k):
            source = vector_at(w + FLOAT * (row * stride + left), wide)
            if wide == COLUMNS:
                for i in range(COLUMNS):
                    panel[row, i] = source[i]
            else:
                panel[row, wide:] = np.float32(0)
                panel[row, :wide] = source


@njit
def pack_rows(out, w, n, k, stride):
    """Pack the transpose of a matrix (n, k), k whole lanes, whose rows are ``stride`` apart."""
    for top in range(0, n, LANES):
        panel = out + FLOAT * (top // COLUMNS * COLUMNS * k + top % COLUMNS)
        for left in range(0, k, LANES):
            target, source = panel + FLOAT * left * COLUMNS, w + FLOAT * (top * stride + left)
            if n - top >= LANES:
                transpose(target, COLUMNS, source, stride)
            else:
                for row in range(LANES):
                    line = vector_at(target + FLOAT * row * COLUMNS, LANES)
                    for i in range(LANES):
                        origin = source + FLOAT * (i * stride + row)
                        line[i] = vector_at(origin, 1)[0] if i < n - top else np.float32(0)
    if 0 < n % COLUMNS <= LANES:
        for row in range(k):
            at = out + FLOAT * (n // COLUMNS * COLUMNS * k + row * COLUMNS + LANES)
            vector_at(at, LANES)[:] = np.float32(0)


@njit
def multiply(out, ldo, a, lda, panels, rows, k, n, init, ldi):
    """Let out (rows, n) be init + a (rows, k) times a packed matrix; whole tiles are written.

    ``rows`` is a multiple of ROWS. A stride ``ldi`` of 0 repeats one row of ``init``.
    """
    for left in range(0, n, COLUMNS):
        panel = panels + FLOAT * left * k
        for top in range(0, rows, ROWS):
            start, target = init + FLOAT * (top * ldi + left), out + FLOAT * (top * ldo + left)
            multiply_tile(a + FLOAT * top * lda, lda, panel, k, start, ldi, target, ldo, panel, 0)
