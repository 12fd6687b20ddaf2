"""Products of few activations with a weight plus signs, on CUDA: the weight is read once.

A forward pass of few tokens is bound by reading the weights and, block by block through a scratch,
also by starting two kernels for each block. Here a first kernel draws the matrix's words, one bit
for an element (1/32 of its bytes). A second kernel adds the signs to a block of the weight in
registers on its way into the product. The inner dimension is cut into parts, so that every
multiprocessor has one. A third kernel adds the parts up, in the same order each time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from shared.base.flat import TILE, TILE_WORDS, Matrix
from shared.directions.kernels.rademacher_triton import LANES, LENGTH, draw, key_and_scale
from shared.randomness.streams import Key

MOST_ROWS = 64  # rows of activations; with more, a block's product outweighs drawing and storing it
INNER, OUTER, WARPS = 32, 32, 8  # of a program's block: what registers hold, with 64 rows too
PROGRAMS = 264  # two for each multiprocessor of the largest cards
TILES = 8  # whose words a program draws
COUNT = tl.constexpr(TILE_WORDS)


@triton.jit
def _words(out, first, count, key, tiles: tl.constexpr):
    """Write the words (count, 64) of tiles from number ``first`` on."""
    row = tl.program_id(0) * tiles + tl.arange(0, tiles)
    lane = tl.arange(0, LANES)[None, :]
    w0, w1, w2, w3 = draw((first + row.to(tl.int64))[:, None] * LANES + lane, key)
    at, here = out + row[:, None] * COUNT + lane, (row < count)[:, None] & (lane < LANES)
    tl.store(at, w0.to(tl.int32, bitcast=True), mask=here)
    tl.store(at + LANES, w1.to(tl.int32, bitcast=True), mask=here)
    tl.store(at + 2 * LANES, w2.to(tl.int32, bitcast=True), mask=here)
    tl.store(at + 3 * LANES, w3.to(tl.int32, bitcast=True), mask=here)


@triton.jit
def _product(
    out, x, weight, words, skip, scales, m, n, k, share, along_n, along_k,
    rows: tl.constexpr, inner: tl.constexpr, outer: tl.constexpr,
):  # fmt: skip
    """Part p of ``out`` (parts, m, n) = x (m, k) times its ``share`` of the inner dimension.

    Element (i, j) of the factor (k, n) lies i * along_k + j * along_n behind ``weight``, whose
    first is element ``skip`` of the first tile that ``words`` holds.
    """
    row = tl.arange(0, rows)
    column = tl.program_id(0) * outer + tl.arange(0, outer)
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, k)
    scale = tl.load(scales)
    total = tl.zeros((rows, outer), dtype=tl.float32)
    for top in range(first, last, inner):
        deep = top + tl.arange(0, inner)
        left = (row < m)[:, None] & (deep < last)[None, :]
        right = (deep < last)[:, None] & (column < n)[None, :]
        a = tl.load(x + row[:, None] * k + deep[None, :], mask=left, other=0.0)
        at = deep[:, None].to(tl.int64) * along_k + column[None, :].to(tl.int64) * along_n
        value = tl.load(weight + at, mask=right, other=0.0)
        at += skip
        word = tl.load(words + at // LENGTH * COUNT + at % COUNT, mask=right, other=0)
        bit = (word >> (at % LENGTH // COUNT).to(tl.int32)) & 1
        value += tl.where(right, tl.where(bit != 0, scale * -1.0, scale), 0.0)
        total = tl.dot(a, value, total, input_precision="ieee")
    target = (tl.program_id(1) * m + row[:, None]) * n + column[None, :]
    tl.store(out + target, total, mask=(row < m)[:, None] & (column < n)[None, :])


def fits(x: Tensor, matrix: Matrix, scratch: Tensor) -> bool:
    """Tell whether a product with ``x`` (m, k) is quicker here than block by block."""
    del matrix, scratch  # any shape; the words take their own memory
    return 0 < x.shape[0] <= MOST_ROWS


def product(
    x: Tensor, matrix: Matrix, bias: Tensor | None, key: Key, scale: float, scratch: Tensor
) -> Tensor:
    """Return x (m, k) times the perturbed matrix, plus bias (n,), as (m, n)."""
    del scratch
    height, width = matrix.shape
    k, n = (width, height) if matrix.transposed else (height, width)
    along_k, along_n = (1, width) if matrix.transposed else (width, 1)
    first, skip = divmod(matrix.start, TILE)
    tiles = -(-(skip + height * width) // TILE)
    words = torch.empty(tiles * TILE_WORDS, dtype=torch.int32, device=x.device)
    numbers, scales = key_and_scale([key], [scale], x.device)
    with torch.cuda.device_of(x):  # Triton launches on the thread's current card
        _words[(triton.cdiv(tiles, TILES),)](words, first, tiles, numbers, tiles=TILES)
    across, deep = triton.cdiv(n, OUTER), triton.cdiv(k, INNER)
    share = triton.cdiv(deep, min(deep, triton.cdiv(PROGRAMS, across))) * INNER
    parts = triton.cdiv(k, share)
    out, rows = x.new_empty(parts, x.shape[0], n), max(16, triton.next_power_of_2(x.shape[0]))
    with torch.cuda.device_of(x):
        _product[(across, parts)](
            out, x.contiguous(), matrix.values, words, skip, scales, x.shape[0], n, k, share,
            along_n, along_k, rows=rows, inner=INNER, outer=OUTER, num_warps=WARPS,
        )  # fmt: skip
    total = out[0] if parts == 1 else out.sum(0)
    return total if bias is None else total.add_(bias)
