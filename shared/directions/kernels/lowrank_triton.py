"""Low-rank directions on CUDA: a block of a matrix takes all products while it is in registers.

A product of a scale and signs is exact, so that fusing it with the addition changes no bit.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

ROWS, COLUMNS = 16, 128  # of a program's block


@triton.jit
def _add(
    out, source, size, skip, a, b, height, width, scales, count,
    rows: tl.constexpr, cols: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(width, cols)
    row = (tl.program_id(0) // across * rows + tl.arange(0, rows)).to(tl.int64)
    column = tl.program_id(0) % across * cols + tl.arange(0, cols)
    at = row[:, None] * width + column[None, :] - skip
    here = (at >= 0) & (at < size) & (column < width)[None, :]
    total = tl.load(source + at, mask=here)
    for k in range(count):
        left = tl.load(a + k * height + row, mask=row < height, other=0.0) * tl.load(scales + k)
        right = tl.load(b + k * width + column, mask=column < width, other=0.0)
        total += left[:, None] * right[None, :]
    tl.store(out + at, total, mask=here)


def add_products_(
    out: Tensor, source: Tensor, skip: int, a: Tensor, b: Tensor, scales: NDArray[np.float64]
) -> None:
    """Write source + Σ_k scales[k] * a[k] b[k]ᵀ into ``out`` (n,), a part of a matrix's rows.

    ``a`` (K, rows) has the rows that ``out`` has a part of, ``b`` (K, width) all columns; ``out``
    begins ``skip`` elements into its first row.
    """
    (height, width), rounded = (a.shape[1], b.shape[1]), torch.from_numpy(scales.astype(np.float32))
    grid = (triton.cdiv(height, ROWS) * triton.cdiv(width, COLUMNS),)
    with torch.cuda.device_of(out):  # Triton launches on the thread's current card
        _add[grid](
            out, source, out.numel(), skip, a, b, height, width,
            rounded.to(out.device), len(scales), rows=ROWS, cols=COLUMNS,
        )  # fmt: skip
