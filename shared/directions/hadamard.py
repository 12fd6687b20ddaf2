"""Orthogonal sign directions: rows of a Hadamard matrix, with random signs of the round.

z_n(c) = s_n · r_c · (−1)^popcount(n AND c) is the direction with number n at parameter number c.
Parameters are numbered in the layout's order, without padding. D is the next power of two that is
no less than their number, and n counts modulo D. The signs r and s are random, the same in all
directions of a round and slot, and independent of those of other rounds.

D successive directions are orthogonal, Σ z·zᵀ = D·I. Along q = D of them slopes give the exact
gradient g. Fewer give an unbiased estimate, because the signs r are independent. Its variance is at
most (D / q − 1)·‖g‖²; it is (d − 1) / q·‖g‖² along independent signs. The signs s do not matter to
zᵀg·z. They keep one-sided differences unbiased when the mean of all is taken from each.

Source: Choromanski et al. 2018 (https://arxiv.org/abs/1804.02395) for directions, Ailon & Chazelle
2006 and Tropp 2011 (https://arxiv.org/abs/1011.1595) for signs before a Hadamard matrix.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.base.flat import TILE, Layout
from shared.directions import DIRECTIONS
from shared.directions.backends import (
    check_ids,
    check_pairs,
    check_source,
    check_tensor,
    kernels_for,
)
from shared.randomness.streams import Key, number_of, round_signs_key

LEAST_BITS = 11  # of a part of one tile, 2**11 elements
CPU_BITS = 15  # the most on the CPU: temporaries stay in cache
DEVICE_BITS = 22  # the most on devices that want long launches
KEPT = 128  # parts of signs that are kept on the CPU, 16 MiB, of the last rounds and rows each


class Part(NamedTuple):
    """Neighbouring elements of one tensor, whose numbers differ in their low bits alone."""

    elements: slice  # of the tensor that was passed in
    address: int  # of the first, in the flat vector
    number: int  # of the first, among the parameters


class Row(NamedTuple):
    """What a key says: the row of the matrix, its own sign, and where the shared signs are."""

    number: int
    sign: float
    shared: Key


@DIRECTIONS.register("hadamard")
class Hadamard:
    """Orthogonal signs. Vectors are float32, contiguous."""

    exact: ClassVar[bool] = True
    pointwise: ClassVar[bool] = True

    def __init__(self, layout: Layout) -> None:
        sizes = [span.size for span in layout.tensors]
        self._starts = [span.start for span in layout.tensors]
        self._numbers = [sum(sizes[:at]) for at in range(len(sizes))]  # of each first element
        self._size = layout.size
        self.order = 1 << max(sum(sizes) - 1, 0).bit_length()  # D

    @torch.no_grad()
    def add_to_(
        self, flat: Tensor, keys: Sequence[Key], coefficients: Sequence[float], start: int = 0
    ) -> None:
        check_pairs(keys, coefficients)
        check_tensor(flat)
        scaled = [
            (self._row(key), float(np.float32(coefficient)))
            for key, coefficient in zip(keys, coefficients, strict=True)
        ]
        for part in self._parts(flat, start):
            target = flat[part.elements]
            for row, scale in scaled:
                target += self._draw(row, part, target).mul_(scale)

    @torch.no_grad()
    def perturb_(self, out: Tensor, source: Tensor, start: int, key: Key, scale: float) -> None:
        check_tensor(out)
        check_source(out, source)
        row, factor = self._row(key), float(np.float32(scale))
        for part in self._parts(out, start):
            target = out[part.elements]
            torch.add(source[part.elements], self._draw(row, part, target).mul_(factor), out=target)

    @torch.no_grad()
    def add_rows_(self, rows: Tensor, ids: Tensor, start: int, key: Key, scale: float) -> None:
        check_ids(rows, ids)
        row, width = self._row(key), rows.shape[-1]
        z = torch.zeros_like(rows)
        kernels_for(z).add_rows_(z, ids, start, row.shared, row.sign)
        columns = torch.arange(width, device=rows.device)
        numbers = self._number(start + ids.to(torch.int64)[..., None] * width + columns)
        rows += z.mul_(_walsh_at(row.number, numbers)).mul_(float(np.float32(scale)))

    def _row(self, key: Key) -> Row:
        """The row of a key; the signs s lie behind the layout's addresses."""
        number, shared = number_of(key), round_signs_key(key)
        tile, element = divmod(self._size + number, TILE)
        own = _draw_shared_once(shared, tile * TILE, TILE, torch.device("cpu"))[element]
        return Row(number % self.order, float(own), shared)

    def _parts(self, flat: Tensor, start: int) -> Iterator[Part]:
        """Cut a tensor at ``start`` where tensors begin and where high bits of numbers change."""
        bits, at, stop = self._bits(flat.device), start, start + flat.numel()
        while at < stop:
            tensor = max(bisect_right(self._starts, at) - 1, 0)
            following = self._starts[tensor + 1 : tensor + 2] or [stop]
            number = at + (self._numbers[tensor] - self._starts[tensor] if self._starts else 0)
            size = min(stop, following[0]) - at
            size = min(size, (1 << bits) - (number & ((1 << bits) - 1)))
            yield Part(slice(at - start, at - start + size), at, number)
            at += size

    def _bits(self, device: torch.device) -> int:
        """Of the numbers that one table of signs is for."""
        most = CPU_BITS if device.type == "cpu" else DEVICE_BITS
        return min(max(self.order.bit_length() - 1, LEAST_BITS), most)

    def _draw(self, row: Row, part: Part, target: Tensor) -> Tensor:
        """Return z of a part as a new tensor, on the device of ``target``."""
        device, size = target.device, target.numel()
        is_cpu, bits = device.type == "cpu", self._bits(device)
        low = (1 << bits) - 1
        table = (_walsh_once if is_cpu else _walsh)(row.number & low, bits, device)
        draw = _draw_shared_once if is_cpu else _draw_shared
        first, odd = part.number & low, (row.number & part.number & ~low).bit_count() % 2
        z = torch.mul(table[first : first + size], draw(row.shared, part.address, size, device))
        return z.mul_(-row.sign if odd else row.sign)

    def _number(self, addresses: Tensor) -> Tensor:
        """The numbers of the elements at these addresses, int64; padding counts on."""
        if not self._starts:
            return addresses
        starts, numbers = torch.tensor([self._starts, self._numbers], device=addresses.device)
        tensor = torch.bucketize(addresses, starts, right=True) - 1
        shifted: Tensor = addresses + (numbers - starts)[tensor]
        return shifted


def _walsh(row: int, bits: int, device: torch.device) -> Tensor:
    """Return the row (2**bits,) of a Hadamard matrix in Sylvester's order; not to be written to."""
    values = torch.ones(1, device=device)
    for bit in range(bits):
        values = torch.cat([values, -values if row >> bit & 1 else values])
    return values


def _walsh_at(row: int, numbers: Tensor) -> Tensor:
    """Return the elements with these numbers, float32, of a row of a Hadamard matrix."""
    parity = numbers & row
    for shift in (32, 16, 8, 4, 2, 1):
        parity = parity ^ (parity >> shift)
    return (1 - 2 * (parity & 1)).to(torch.float32)


def _draw_shared(key: Key, address: int, size: int, device: torch.device) -> Tensor:
    """Return the random signs (size,) of a round from an address on; not to be written to."""
    drawn = torch.zeros(size, device=device)
    kernels_for(drawn).add_to_(drawn, [key], [1.0], address)
    return drawn


_walsh_once = lru_cache(KEPT)(_walsh)
_draw_shared_once = lru_cache(KEPT)(_draw_shared)
