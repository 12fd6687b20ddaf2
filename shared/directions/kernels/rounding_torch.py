"""Stochastic rounding to bfloat16 in plain torch, for any device: integers until the last step."""

import torch
from torch import Tensor

from shared.directions import Key
from shared.directions.kernels.philox_torch import words

DRAWN = 8  # numbers of one block
CHUNK = 1 << 20  # numbers at a time
EXPONENT, FRACTION, QUIET = 0x7F800000, 0x7FFFFF, 0x40


@torch.no_grad()
def round_(out: Tensor, values: Tensor, key: Key, start: int) -> None:
    """Round ``values`` (n,) float32, which begin at ``start``, into ``out`` (n,) bfloat16."""
    for at in range(0, values.numel(), CHUNK):
        part = values[at : at + CHUNK]
        bits = part.view(torch.int32).long() & 0xFFFFFFFF
        odds = _odds(key, start + at, part.numel(), part.device)
        finite = bits & EXPONENT != EXPONENT
        upper = bits + torch.where(finite, odds, 0) >> 16
        upper |= QUIET * (~finite & (bits & FRACTION != 0))
        signed = torch.where(upper >= 1 << 15, upper - (1 << 16), upper)
        out[at : at + CHUNK].view(torch.int16).copy_(signed)


def _odds(key: Key, start: int, size: int, device: torch.device) -> Tensor:
    """The 16 bits (size,) of the addresses from ``start``."""
    first, stop = start // DRAWN, -(-(start + size) // DRAWN)
    drawn = words(key, torch.arange(first, stop, device=device)).T  # (blocks, 4)
    halves = torch.stack([drawn & 0xFFFF, drawn >> 16], 2).reshape(-1)
    return halves[start - first * DRAWN :][:size]
