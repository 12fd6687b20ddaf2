"""Philox4x32-10 in plain torch, for any device: every operation is on int64, so it is exact."""

import torch
from torch import Tensor

from shared.directions import Key
from shared.directions.philox import MULTIPLIERS, ROUNDS, WEYL

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
