"""Directions and rounding in plain torch, for any device: integers and exact products only.

Philox4x32-10 runs on int64, so every operation is exact and the bits agree with the compiled and
the Triton kernels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.base.flat import TILE, TILE_BLOCKS, TILE_WORDS
from shared.randomness.philox import MULTIPLIERS, ROUNDS, WEYL
from shared.randomness.streams import Key

LOW = 0xFFFFFFFF


def words(key: Key, blocks: Tensor) -> Tensor:
    """Return the words (4, n) as int64 of these blocks (n,) of a key.

    A product of two 32-bit numbers may wrap to a negative int64; its bits are the right ones, and
    masking after the shift takes away what the sign filled in.
    """
    c0, c1 = blocks & LOW, torch.full_like(blocks, key.index)
    c2, c3 = torch.full_like(blocks, key.round), torch.full_like(blocks, key.slot)
    k0, k1 = key.seed & LOW, key.seed >> 32
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = ((p1 >> 32) & LOW) ^ c1 ^ k0, ((p0 >> 32) & LOW) ^ c3 ^ k1
        c1, c3 = p1 & LOW, p0 & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return torch.stack([c0, c1, c2, c3])


SIGNS = 1 << 20  # drawn at a time


def _draw_run(key: Key, start: int, size: int, device: torch.device) -> Tensor:
    """Return z (size,) at the addresses from ``start``: whole tiles, cut at the ends."""
    first, stop = start // TILE, -(-(start + size) // TILE)
    blocks = torch.arange(first * TILE_BLOCKS, stop * TILE_BLOCKS, device=device)
    lanes = words(key, blocks).view(4, -1, TILE_BLOCKS).transpose(0, 1).reshape(-1, 1, TILE_WORDS)
    bits = lanes >> torch.arange(TILE // TILE_WORDS, device=device)[:, None] & 1  # (tiles, 32, 64)
    return _to_signs(bits).view(-1)[start - first * TILE :][:size]


def _draw_at(key: Key, addresses: Tensor) -> Tensor:
    """Return z (n,) at any addresses (n,); draws a block for each."""
    element = addresses % TILE
    lane = element % TILE_WORDS
    drawn = words(key, addresses // TILE * TILE_BLOCKS + lane % TILE_BLOCKS)  # (4, n)
    word = drawn.gather(0, (lane // TILE_BLOCKS)[None])[0]
    return _to_signs(word >> element // TILE_WORDS & 1)


def _to_signs(bits: Tensor) -> Tensor:
    return 1 - 2 * bits.to(torch.float32)


def _to_float32(scale: float) -> float:
    return float(np.float32(scale))


@torch.no_grad()
def add_to_(flat: Tensor, keys: Sequence[Key], coefficients: Sequence[float], start: int) -> None:
    """Add sum of coefficients[k] * z(keys[k]) to ``flat`` (n,) at address ``start``."""
    for at in range(0, flat.numel(), SIGNS):
        part = flat[at : at + SIGNS]
        for key, coefficient in zip(keys, coefficients, strict=True):
            z = _draw_run(key, start + at, part.numel(), flat.device)
            part += z.mul_(_to_float32(coefficient))


@torch.no_grad()
def perturb_(out: Tensor, source: Tensor, start: int, key: Key, scale: float) -> None:
    """Write source + scale * z(key) into ``out`` (n,), which lies at address ``start``."""
    for at in range(0, out.numel(), SIGNS):
        part = slice(at, at + SIGNS)
        z = _draw_run(key, start + at, out[part].numel(), out.device)
        torch.add(source[part], z.mul_(_to_float32(scale)), out=out[part])


@torch.no_grad()
def add_rows_(rows: Tensor, ids: Tensor, start: int, key: Key, scale: float) -> None:
    """Add scale * z to ``rows`` (m, width): row i holds row ids[i] of the matrix at ``start``."""
    width = rows.shape[1]
    columns, step = torch.arange(width, device=rows.device), max(1, SIGNS // width)
    for at in range(0, len(rows), step):
        part = rows[at : at + step]
        addresses = start + ids[at : at + step, None].to(torch.int64) * width + columns
        part += _draw_at(key, addresses.view(-1)).mul_(_to_float32(scale)).view_as(part)


def add_each_(rows: Tensor, keys: Sequence[Key], start: int) -> None:
    """Add z(keys[k]) at address ``start`` to row k of ``rows`` (K, n)."""
    for row, key in zip(rows, keys, strict=True):
        add_to_(row, [key], [1.0], start)


PRODUCTS = 1 << 22  # elements of a product that are built at a time


@torch.no_grad()
def add_products_(
    out: Tensor, source: Tensor, skip: int, a: Tensor, b: Tensor, scales: NDArray[np.float64]
) -> None:
    """Write source + Σ_k scales[k] * a[k] b[k]ᵀ into ``out`` (n,), a part of a matrix's rows.

    ``a`` (K, rows) has the rows that ``out`` has a part of, ``b`` (K, width) all columns; ``out``
    begins ``skip`` elements into its first row.
    """
    width = b.shape[1]
    step = max(1, PRODUCTS // width)
    for top in range(0, a.shape[1], step):
        rows = a[:, top : top + step]
        low = max(top * width - skip, 0)
        high = min((top + rows.shape[1]) * width - skip, out.numel())
        total, begin = source[low:high], low + skip - top * width
        for k, scale in enumerate(scales.astype(np.float32).tolist()):
            product = (rows[k] * scale)[:, None] * b[k]
            total = total + product.view(-1)[begin : begin + high - low]
        out[low:high] = total


PER_BLOCK = 8  # numbers that one block of the generator rounds, 16 bits each
ROUNDED = 1 << 20  # numbers at a time
EXPONENT, FRACTION, QUIET = 0x7F800000, 0x7FFFFF, 0x40


@torch.no_grad()
def round_(out: Tensor, values: Tensor, key: Key, start: int) -> None:
    """Round ``values`` (n,) float32, which begin at ``start``, into ``out`` (n,) bfloat16."""
    for at in range(0, values.numel(), ROUNDED):
        part = values[at : at + ROUNDED]
        bits = part.view(torch.int32).long() & 0xFFFFFFFF
        odds = _draw_odds(key, start + at, part.numel(), part.device)
        finite = bits & EXPONENT != EXPONENT
        upper = bits + torch.where(finite, odds, 0) >> 16
        upper |= QUIET * (~finite & (bits & FRACTION != 0))
        signed = torch.where(upper >= 1 << 15, upper - (1 << 16), upper)
        out[at : at + ROUNDED].view(torch.int16).copy_(signed)


def _draw_odds(key: Key, start: int, size: int, device: torch.device) -> Tensor:
    """Draw the 16 random bits (size,) of each address from ``start`` on."""
    first, stop = start // PER_BLOCK, -(-(start + size) // PER_BLOCK)
    drawn = words(key, torch.arange(first, stop, device=device)).T  # (blocks, 4)
    halves = torch.stack([drawn & 0xFFFF, drawn >> 16], 2).reshape(-1)
    return halves[start - first * PER_BLOCK :][:size]
