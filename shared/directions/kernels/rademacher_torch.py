"""Sign directions in plain torch, for any device: integers until the last step, so bits agree."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shared.directions import Key
from shared.directions.kernels.philox_torch import words
from shared.directions.rademacher import BLOCKS, WORDS
from shared.flat import TILE

CHUNK = 1 << 20  # elements drawn at a time


def _run(key: Key, start: int, size: int, device: torch.device) -> Tensor:
    """Return z (size,) at the addresses from ``start``: whole tiles, cut at the ends."""
    first, stop = start // TILE, -(-(start + size) // TILE)
    blocks = torch.arange(first * BLOCKS, stop * BLOCKS, device=device)
    lanes = words(key, blocks).view(4, -1, BLOCKS).transpose(0, 1).reshape(-1, 1, WORDS)
    bits = lanes >> torch.arange(TILE // WORDS, device=device)[:, None] & 1  # (tiles, 32, 64)
    return _signs(bits).view(-1)[start - first * TILE :][:size]


def _at(key: Key, addresses: Tensor) -> Tensor:
    """Return z (n,) at any addresses (n,); draws a block for each."""
    element = addresses % TILE
    lane = element % WORDS
    drawn = words(key, addresses // TILE * BLOCKS + lane % BLOCKS)  # (4, n)
    word = drawn.gather(0, (lane // BLOCKS)[None])[0]
    return _signs(word >> element // WORDS & 1)


def _signs(bits: Tensor) -> Tensor:
    return 1 - 2 * bits.to(torch.float32)


def _rounded(scale: float) -> float:
    return float(np.float32(scale))


@torch.no_grad()
def add_to_(flat: Tensor, keys: Sequence[Key], coefficients: Sequence[float], start: int) -> None:
    """Add sum of coefficients[k] * z(keys[k]) to ``flat`` (n,) at address ``start``."""
    for at in range(0, flat.numel(), CHUNK):
        part = flat[at : at + CHUNK]
        for key, coefficient in zip(keys, coefficients, strict=True):
            z = _run(key, start + at, part.numel(), flat.device)
            part += z.mul_(_rounded(coefficient))


@torch.no_grad()
def perturbed_(out: Tensor, source: Tensor, start: int, key: Key, scale: float) -> None:
    """Write source + scale * z(key) into ``out`` (n,), which lies at address ``start``."""
    for at in range(0, out.numel(), CHUNK):
        part = slice(at, at + CHUNK)
        z = _run(key, start + at, out[part].numel(), out.device)
        torch.add(source[part], z.mul_(_rounded(scale)), out=out[part])


@torch.no_grad()
def add_rows_(rows: Tensor, ids: Tensor, start: int, key: Key, scale: float) -> None:
    """Add scale * z to ``rows`` (m, width): row i holds row ids[i] of the matrix at ``start``."""
    width = rows.shape[1]
    columns, step = torch.arange(width, device=rows.device), max(1, CHUNK // width)
    for at in range(0, len(rows), step):
        part = rows[at : at + step]
        addresses = start + ids[at : at + step, None].to(torch.int64) * width + columns
        part += _at(key, addresses.view(-1)).mul_(_rounded(scale)).view_as(part)


def add_each_(rows: Tensor, keys: Sequence[Key], start: int) -> None:
    """Add z(keys[k]) at address ``start`` to row k of ``rows`` (K, n)."""
    for row, key in zip(rows, keys, strict=True):
        add_to_(row, [key], [1.0], start)
