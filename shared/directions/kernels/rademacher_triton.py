"""Sign directions on CUDA: signs are drawn in registers, so memory is read and written once.

A program takes some tiles. Of a tile's 2,048 elements, number 64 r + 16 w + b takes bit r of word w
of block b (see ``rademacher``), so an array (tiles, 32, 16) for each of the four words holds them.
±scale is chosen and added, so nothing is rounded but the sums, as in every other kernel.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from shared.base.flat import TILE, TILE_BLOCKS
from shared.randomness.philox import MULTIPLIERS, ROUNDS, WEYL
from shared.randomness.streams import Key

TILES = 8  # of a program
FEW = 40  # numbers that are kept on the device: those of eight keys
M0, M1 = (tl.constexpr(number) for number in MULTIPLIERS)
W0, W1 = (tl.constexpr(number) for number in WEYL)
TIMES, LENGTH, LANES = tl.constexpr(ROUNDS), tl.constexpr(TILE), tl.constexpr(TILE_BLOCKS)


@triton.jit
def draw(block, key):
    """Return the four words of each block under the five numbers at ``key``."""
    k0, k1 = tl.load(key).to(tl.uint32), tl.load(key + 1).to(tl.uint32)
    c0 = block.to(tl.uint32)
    c1 = tl.zeros_like(c0) + tl.load(key + 2).to(tl.uint32)
    c2 = tl.zeros_like(c0) + tl.load(key + 3).to(tl.uint32)
    c3 = tl.zeros_like(c0) + tl.load(key + 4).to(tl.uint32)
    for _ in tl.static_range(TIMES):
        low0, high0 = c0 * tl.cast(M0, tl.uint32), tl.umulhi(c0, tl.cast(M0, tl.uint32))
        low1, high1 = c2 * tl.cast(M1, tl.uint32), tl.umulhi(c2, tl.cast(M1, tl.uint32))
        c0, c2 = high1 ^ c1 ^ k0, high0 ^ c3 ^ k1
        c1, c3 = low1, low0
        k0, k1 = k0 + tl.cast(W0, tl.uint32), k1 + tl.cast(W1, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _choose_sign(words, rows, scale):
    """Return ±scale (tiles, 32, 16) for one word (tiles, 16) of each block.

    Triton's minus is a subtraction from 0, which makes 0 of 0; the other kernels have −0 there.
    """
    bits = (words[:, None, :] >> rows) & 1
    return tl.where(bits != 0, scale * -1.0, scale)


@triton.jit
def _add(out, source, starts, width, groups, keys, scales, count, apart, tiles: tl.constexpr):
    """Row r of ``out`` (rows, width) = its source + Σ_k scales[k] * z(key k) at starts[r].

    Keys are shared by all rows, or, with ``apart`` = 1, row r has key r alone.
    """
    row = (tl.program_id(0) // groups).to(tl.int64)
    start = tl.load(starts + row)
    first = start // LENGTH + (tl.program_id(0) % groups) * tiles
    tile = first + tl.arange(0, tiles)
    lane = tl.arange(0, LANES)
    rows = tl.arange(0, LENGTH // (4 * LANES))[None, :, None]
    at = tile[:, None, None] * LENGTH - start + rows * (4 * LANES) + lane[None, None, :]
    rows = rows.to(tl.uint32)
    block = tile[:, None] * LANES + lane[None, :]
    base = row * width
    m0 = (at >= 0) & (at < width)
    m1 = (at + LANES >= 0) & (at + LANES < width)
    m2 = (at + 2 * LANES >= 0) & (at + 2 * LANES < width)
    m3 = (at + 3 * LANES >= 0) & (at + 3 * LANES < width)
    t0 = tl.load(source + base + at, mask=m0)
    t1 = tl.load(source + base + at + LANES, mask=m1)
    t2 = tl.load(source + base + at + 2 * LANES, mask=m2)
    t3 = tl.load(source + base + at + 3 * LANES, mask=m3)
    for k in range(count):
        scale = tl.load(scales + k)
        w0, w1, w2, w3 = draw(block, keys + (row * apart + k) * 5)
        t0 += _choose_sign(w0, rows, scale)
        t1 += _choose_sign(w1, rows, scale)
        t2 += _choose_sign(w2, rows, scale)
        t3 += _choose_sign(w3, rows, scale)
    tl.store(out + base + at, t0, mask=m0)
    tl.store(out + base + at + LANES, t1, mask=m1)
    tl.store(out + base + at + 2 * LANES, t2, mask=m2)
    tl.store(out + base + at + 3 * LANES, t3, mask=m3)


def _launch(
    out: Tensor,
    source: Tensor,
    starts: Tensor,
    keys: Sequence[Key],
    scales: Sequence[float],
    apart: bool = False,
) -> None:
    """Add to every row of ``out`` (rows, width), which begins at the address starts[row]."""
    rows, width = out.shape
    if not rows or not width:
        return
    tiles = min(TILES, triton.next_power_of_2(-(-width // TILE) + 1))
    groups = -(-(-(-width // TILE) + 1) // tiles)  # a row may begin and end within a tile
    count = 1 if apart else len(keys)
    _add[(rows * groups,)](
        out,
        source,
        starts,
        width,
        groups,
        key_numbers(keys, out.device),
        _upload(np.array(scales, np.float32), out.device),
        count,
        int(apart),
        tiles=tiles,
    )


def key_numbers(keys: Sequence[Key], device: torch.device) -> Tensor:
    """Return the five numbers (keys, 5) of each key, as ``draw`` reads them; nobody writes them."""
    numbers = [(k.seed & 0xFFFFFFFF, k.seed >> 32, k.index, k.round, k.slot) for k in keys]
    return _upload(np.array(numbers, np.int64), device).view(-1, 5)


def _upload(numbers: NDArray[Any], device: torch.device) -> Tensor:
    """Return numbers on the device, as (n,); few of them are kept there for the next launch.

    A query starts a kernel for every block of the parameters, all with one key and one scale.
    Copying these numbers anew takes about as long as such a kernel.
    """
    if numbers.size > FEW:
        return torch.from_numpy(numbers.ravel()).to(device)
    return _keep(numbers.tobytes(), numbers.dtype, device)


@lru_cache(maxsize=1024)
def _keep(data: bytes, dtype: np.dtype[Any], device: torch.device) -> Tensor:
    """Numbers by their bytes: 0 and −0 are two."""
    return torch.from_numpy(np.frombuffer(data, dtype).copy()).to(device)


def add_to_(flat: Tensor, keys: Sequence[Key], coefficients: Sequence[float], start: int) -> None:
    """Add sum of coefficients[k] * z(keys[k]) to ``flat`` (n,) at address ``start``."""
    _launch(flat[None], flat[None], _starts(flat, start), keys, coefficients)


def perturb_(out: Tensor, source: Tensor, start: int, key: Key, scale: float) -> None:
    """Write source + scale * z(key) into ``out`` (n,), which lies at address ``start``."""
    _launch(out[None], source[None], _starts(out, start), [key], [scale])


def add_rows_(rows: Tensor, ids: Tensor, start: int, key: Key, scale: float) -> None:
    """Add scale * z to ``rows`` (m, width): row i holds row ids[i] of the matrix at ``start``."""
    starts = start + ids.to(torch.int64) * rows.shape[1]
    _launch(rows, rows, starts, [key], [scale])


def add_each_(rows: Tensor, keys: Sequence[Key], start: int) -> None:
    """Add z(keys[k]) at address ``start`` to row k of ``rows`` (K, n)."""
    starts = torch.full((len(keys),), start, dtype=torch.int64, device=rows.device)
    _launch(rows, rows, starts, keys, [1.0], apart=True)


def _starts(flat: Tensor, start: int) -> Tensor:
    return _upload(np.array([start], np.int64), flat.device)
