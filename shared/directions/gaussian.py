"""Gaussian directions: standard normals by Box and Muller (1958) from the generator's words.

Element e takes number e % 4 of block e // 4. Two words w, w' make two numbers, r cos a and r sin a
with r = sqrt(-2 ln((w + 1) / 2**32)) and a = 2 pi w' / 2**32: words 0 and 1 of the block make its
numbers 0 and 1, words 2 and 3 its numbers 2 and 3. None exceeds 6.7.

The words are exact, but the last bits of logarithm and cosine depend on the device. Replicas on
different kinds of device would drift apart, so the server refuses a mixed fleet for this family.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import pi
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from shared.base.flat import Layout
from shared.directions import DIRECTIONS
from shared.directions.backends import check_ids, check_pairs, check_source, words_on
from shared.randomness.streams import Key

PER_BLOCK = 4  # normals of one block
CPU_ELEMENTS = 1 << 15  # drawn at a time on the CPU: temporaries stay in cache
DEVICE_ELEMENTS = 1 << 22  # the same on devices that want long launches
KEPT = 64  # draws of at most CPU_ELEMENTS numbers: 8 MiB
VECTOR = 64  # blocks: torch computes a remainder below this with other instructions


def normals(key: Key, blocks: Tensor) -> Tensor:
    """Return the normals (n, 4) of these blocks (n,) of a key; each row is its block's alone."""
    padded = pad(blocks, (0, -blocks.numel() % VECTOR))
    w0, a0, w1, a1 = words_on(key, padded)
    numbers = []
    for word, other in ((w0, a0), (w1, a1)):
        uniform = (word + 1).to(torch.float32) * 2.0**-32  # in (0, 1]
        radius = uniform.log_().mul_(-2).sqrt_()
        angle = other.to(torch.float32) * (2 * pi * 2.0**-32)
        numbers += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(numbers, 1)[: blocks.numel()]


def _draw(key: Key, start: int, size: int, device: torch.device) -> Tensor:
    """Return z (size,) at the addresses from ``start``; not to be written to.

    Sites of one process measure along the same directions, so the CPU's last ones are kept.
    """
    return (_draw_once if device.type == "cpu" else _draw_anew)(key, start, size, device)


def _draw_anew(key: Key, start: int, size: int, device: torch.device) -> Tensor:
    first, stop = start // PER_BLOCK, -(-(start + size) // PER_BLOCK)
    drawn = normals(key, torch.arange(first, stop, device=device)).view(-1)
    return drawn[start - first * PER_BLOCK :][:size]


_draw_once = lru_cache(KEPT)(_draw_anew)


def forget_draws() -> None:
    """Draw anew from now on, also what was drawn before."""
    _draw_once.cache_clear()


def _draw_rows(key: Key, starts: Tensor, width: int) -> Tensor:
    """Return z (m, width) of rows that begin at these addresses (m,)."""
    columns = torch.arange(width, device=starts.device)
    blocks = torch.arange(width // PER_BLOCK + 2, device=starts.device)  # enough for any start
    needed = starts[:, None] // PER_BLOCK + blocks
    drawn = normals(key, needed.view(-1)).view(len(starts), -1)
    return drawn.gather(1, starts[:, None] % PER_BLOCK + columns)


def _parts(size: int, device: torch.device) -> Iterator[slice]:
    step = CPU_ELEMENTS if device.type == "cpu" else DEVICE_ELEMENTS
    return (slice(at, min(at + step, size)) for at in range(0, size, step))


@DIRECTIONS.register("gaussian")
class Gaussian:
    """Independent standard normals; the layout does not matter to them."""

    exact: ClassVar[bool] = False
    pointwise: ClassVar[bool] = True

    def __init__(self, layout: Layout) -> None:
        del layout

    @torch.no_grad()
    def add_to_(
        self, flat: Tensor, keys: Sequence[Key], coefficients: Sequence[float], start: int = 0
    ) -> None:
        check_pairs(keys, coefficients)
        for part in _parts(flat.numel(), flat.device):
            for key, coefficient in zip(keys, coefficients, strict=True):
                z = _draw(key, start + part.start, part.stop - part.start, flat.device)
                flat[part] += z * float(np.float32(coefficient))

    @torch.no_grad()
    def perturb_(self, out: Tensor, source: Tensor, start: int, key: Key, scale: float) -> None:
        check_source(out, source)
        for part in _parts(out.numel(), out.device):
            z = _draw(key, start + part.start, part.stop - part.start, out.device)
            torch.add(source[part], z * float(np.float32(scale)), out=out[part])

    @torch.no_grad()
    def add_rows_(self, rows: Tensor, ids: Tensor, start: int, key: Key, scale: float) -> None:
        check_ids(rows, ids)
        width = rows.shape[1]
        starts, step = start + ids.to(torch.int64) * width, max(1, CPU_ELEMENTS // width)
        for at in range(0, len(rows), step):
            part = slice(at, at + step)
            rows[part] += _draw_rows(key, starts[part], width) * float(np.float32(scale))
