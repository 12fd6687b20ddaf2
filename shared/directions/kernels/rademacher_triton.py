"""Sign directions on CUDA: signs are drawn in registers, so memory is read and written once.

A program takes some tiles. Of a tile's 2,048 elements, number 64 r + 16 w + b takes bit r of word w
of block b (see ``rademacher``), so an array (tiles, 32, 16) for each of the four words holds them.
±scale is chosen and added, so nothing is rounded but the sums, as in every other kernel.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from shared.base.flat import TILE, TILE_BLOCKS
from shared.randomness.philox import MULTIPLIERS, ROUNDS, WEYL
from shared.randomness.streams import Key

HAS_BFLOAT16 = True  # as float32
TILES, WARPS = 2, 1  # of a program: then few threads draw the same words
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

    A set bit flips the sign bit of ``scale``: a shift and one logical operation, and −0 of 0.
    """
    flips = (words[:, None, :] << (31 - rows)) & 0x80000000
    return (scale.to(tl.uint32, bitcast=True) ^ flips).to(tl.float32, bitcast=True)


@triton.jit
def _read(at, here, low: tl.constexpr):
    """Load numbers as float32; with ``low``, from the 16 bits of each that bfloat16 keeps."""
    value = tl.load(at, mask=here)
    if low:
        value = (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return value


@triton.jit
def _write(at, value, here, low: tl.constexpr):
    """Store float32; with ``low``, the upper 16 bits, rounded to nearest and ties to even.

    Written out in integers: Triton's interpreter rounds another way.
    """
    if low:
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(at, bits.to(tl.uint16).to(tl.int16, bitcast=True), mask=here)
    else:
        tl.store(at, value, mask=here)


@triton.jit
def _exists(at, tile, start, width, whole: tl.constexpr):
    """Which of a word's elements ``at`` (tiles, 32, 16) are in a row; ``whole``: all of a tile."""
    if whole:  # noqa: SIM108  (Triton takes one branch when it compiles)
        here = (tile * LENGTH - start < width)[:, None, None]
    else:
        here = (at >= 0) & (at < width)
    return here


@triton.jit(do_not_specialize=["offset"])
def _add(
    out, source, offset, starts, width, groups, keys, scales, count, apart,
    tiles: tl.constexpr, low: tl.constexpr, whole: tl.constexpr,
):  # fmt: skip
    """Row r of ``out`` (rows, width) = its source + Σ_k scales[k] * z(key k), rounded at the end.

    The row begins at the address offset + starts[r]. Keys are shared by all rows, or, with
    ``apart`` = 1, row r has key r alone. Sums are in float32; with ``low``, both are the bits of
    bfloat16 as int16. With ``whole``, every row is a number of whole tiles.
    """
    row = (tl.program_id(0) // groups).to(tl.int64)
    start = tl.load(starts + row) + offset
    tile = start // LENGTH + (tl.program_id(0) % groups) * tiles + tl.arange(0, tiles)
    lane = tl.arange(0, LANES)
    rows = tl.arange(0, LENGTH // (4 * LANES))[None, :, None]
    base = row * width
    at = tile[:, None, None] * LENGTH - start + rows * (4 * LANES) + lane[None, None, :]
    m0 = _exists(at, tile, start, width, whole)
    m1 = _exists(at + LANES, tile, start, width, whole)
    m2 = _exists(at + 2 * LANES, tile, start, width, whole)
    m3 = _exists(at + 3 * LANES, tile, start, width, whole)
    rows = rows.to(tl.uint32)
    block = tile[:, None] * LANES + lane[None, :]
    t0 = _read(source + base + at, m0, low)
    t1 = _read(source + base + at + LANES, m1, low)
    t2 = _read(source + base + at + 2 * LANES, m2, low)
    t3 = _read(source + base + at + 3 * LANES, m3, low)
    for k in range(count):
        scale = tl.load(scales + k)
        w0, w1, w2, w3 = draw(block, keys + (row * apart + k) * 5)
        t0 += _choose_sign(w0, rows, scale)
        t1 += _choose_sign(w1, rows, scale)
        t2 += _choose_sign(w2, rows, scale)
        t3 += _choose_sign(w3, rows, scale)
    _write(out + base + at, t0, m0, low)
    _write(out + base + at + LANES, t1, m1, low)
    _write(out + base + at + 2 * LANES, t2, m2, low)
    _write(out + base + at + 3 * LANES, t3, m3, low)


class DeviceSlot:
    """A key and a scale in memory of the device, which launches of a captured graph read there.

    A graph has the addresses of what its kernels read. So a graph that was captured while the slot
    was active computes with what the slot holds when the graph is started.
    """

    _here: ClassVar[threading.local] = threading.local()  # each device has a thread of its own

    def __init__(self, device: torch.device) -> None:
        self.numbers = torch.zeros(1, 5, dtype=torch.int64, device=device)
        self.scale = torch.zeros(1, dtype=torch.float32, device=device)

    @contextmanager
    def active(self, key: Key, scale: float) -> Iterator[None]:
        """Let all launches with one key read this key and scale here meanwhile."""
        self.numbers.copy_(key_numbers([key], self.numbers.device))
        self.scale.copy_(_upload(np.array([scale], np.float32), self.scale.device))
        before, DeviceSlot._here.slot = self.current(), self
        try:
            yield
        finally:
            DeviceSlot._here.slot = before

    @staticmethod
    def current() -> "DeviceSlot | None":
        """The slot that is active in this thread, if any."""
        slot: DeviceSlot | None = getattr(DeviceSlot._here, "slot", None)
        return slot


def key_and_scale(
    keys: Sequence[Key], scales: Sequence[float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The same as ``upload_keys``; one key and scale are those of the slot, if it is active."""
    if (slot := DeviceSlot.current()) is not None and len(keys) == 1:
        return slot.numbers, slot.scale
    return upload_keys(keys, scales, device)


def upload_keys(
    keys: Sequence[Key], scales: Sequence[float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the numbers (keys, 5) of keys and their scales (scales,) on the device."""
    return key_numbers(keys, device), _upload(np.array(scales, np.float32), device)


def _launch(
    out: Tensor,
    source: Tensor,
    at: tuple[int, Tensor],
    keys: Sequence[Key],
    scales: Sequence[float],
    apart: bool = False,
) -> None:
    """Add to every row of ``out`` (rows, width), which begins at the address at[0] + at[1][row]."""
    rows, width = out.shape
    if not rows or not width:
        return
    whole = at[0] % TILE == 0 and width % TILE == 0
    most = width // TILE if whole else -(-width // TILE) + 1  # a row may begin within a tile
    tiles = min(TILES, triton.next_power_of_2(most))
    groups = -(-most // tiles)
    read = upload_keys if apart else key_and_scale
    numbers, factors = read(keys, scales, out.device)
    count, low = 1 if apart else len(keys), out.dtype is torch.bfloat16
    if low:
        out, source = out.view(torch.int16), source.view(torch.int16)
    with torch.cuda.device_of(out):  # Triton launches on the thread's current card
        _add[(rows * groups,)](
            out, source, *at, width, groups, numbers, factors, count, int(apart),
            tiles=tiles, low=low, whole=whole, num_warps=WARPS,
        )  # fmt: skip


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


@cache
def _zeros(rows: int, device: torch.device) -> Tensor:
    """Zeros (rows,) that stay where they are: captured graphs read them."""
    return torch.zeros(rows, dtype=torch.int64, device=device)


def add_to_(flat: Tensor, keys: Sequence[Key], coefficients: Sequence[float], start: int) -> None:
    """Add sum of coefficients[k] * z(keys[k]) to ``flat`` (n,) at address ``start``."""
    _launch(flat[None], flat[None], (start, _zeros(1, flat.device)), keys, coefficients)


def perturb_(out: Tensor, source: Tensor, start: int, key: Key, scale: float) -> None:
    """Write source + scale * z(key) into ``out`` (n,), which lies at address ``start``.

    Both are in float32, or in bfloat16: the sum in float32 is rounded to nearest then.
    """
    _launch(out[None], source[None], (start, _zeros(1, out.device)), [key], [scale])


def add_rows_(rows: Tensor, ids: Tensor, start: int, key: Key, scale: float) -> None:
    """Add scale * z to ``rows`` (m, width): row i holds row ids[i] of the matrix at ``start``.

    As ``perturb_``, in float32 or bfloat16.
    """
    _launch(rows, rows, (start, ids.to(torch.int64) * rows.shape[1]), [key], [scale])


def add_each_(rows: Tensor, keys: Sequence[Key], start: int) -> None:
    """Add z(keys[k]) at address ``start`` to row k of ``rows`` (K, n)."""
    at = start, torch.zeros(len(keys), dtype=torch.int64, device=rows.device)
    _launch(rows, rows, at, keys, [1.0], apart=True)
