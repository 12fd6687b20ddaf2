"""Low-rank directions on the CPU: every product is added to a row while the row is in cache.

Each thread takes consecutive whole rows, so no bit depends on how many threads there are.
"""

import numpy as np
from numba import carray, njit, prange
from numpy.typing import NDArray
from torch import Tensor

from shared.directions.kernels.compiled import floats_at, kernel, shares


@njit(inline="always")
def _add_row(out, source, a, b, scales, row, column):
    """Write source + Σ_k scales[k] * a[k, row] * b[k, column:] into ``out``, a part of a row."""
    count = np.uint64(out.size)
    for i in range(count):
        out[i] = source[i] + scales[0] * a[0, row] * b[0, column + i]
    for k in range(1, scales.size):
        scale = scales[k] * a[k, row]
        for i in range(count):
            out[i] = out[i] + scale * b[k, column + i]


@kernel("void(int64, int64, int64, int64, int64, int64, int64, float32[::1], int64, int64, int64)")
def _add(out, source, size, skip, a, b, width, scales, height, part, parts):
    """Rows of share ``part``; element 0 lies ``skip`` elements into row 0."""
    target, origin = carray(floats_at(out), size), carray(floats_at(source), size)
    left, right = (
        carray(floats_at(a), (scales.size, height)),
        carray(floats_at(b), (scales.size, width)),
    )
    for row in range(height * part // parts, height * (part + 1) // parts):
        low, high = max(row * width - skip, 0), min((row + 1) * width - skip, size)
        column = np.uint64(low + skip - row * width)
        _add_row(target[low:high], origin[low:high], left, right, scales, row, column)


@kernel(
    "void(int64, int64, int64, int64, int64, int64, int64, float32[::1], int64, int64)",
    parallel=True,
)
def _add_in_parallel(out, source, size, skip, a, b, width, scales, height, parts):
    for part in prange(parts):
        _add(out, source, size, skip, a, b, width, scales, height, part, parts)


def add_products_(
    out: Tensor, source: Tensor, skip: int, a: Tensor, b: Tensor, scales: NDArray[np.float64]
) -> None:
    """Write source + Σ_k scales[k] * a[k] b[k]ᵀ into ``out`` (n,), a part of a matrix's rows.

    ``a`` (K, rows) has the rows that ``out`` has a part of, ``b`` (K, width) all columns; ``out``
    begins ``skip`` elements into its first row.
    """
    height, width, rounded = a.shape[1], b.shape[1], scales.astype(np.float32)
    operands = out.data_ptr(), source.data_ptr(), out.numel(), skip, a.data_ptr(), b.data_ptr()
    threads = shares(out.numel() * len(scales), height)
    if threads == 1:
        _add(*operands, width, rounded, height, 0, 1)
    else:
        _add_in_parallel(*operands, width, rounded, height, threads)
