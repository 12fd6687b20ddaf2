"""Many rounds in one pass over the parameters: a piece takes every round's step while in cache.

Where a round's step is nothing but an addition of directions, element after element sees the same
additions in the same order as round by round, so the bits are the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from shared.base.flat import TILE, Layout
from shared.directions import Directions
from shared.randomness.streams import Key

KEYS = 1 << 14  # directions of one pass, at most, where a round has no more
Floats = NDArray[np.float32]
PIECE = 1 << 18  # elements, 1 MiB: whole tiles that stay in a core's cache from round to round


@dataclass(frozen=True, slots=True)
class Step:
    """One round: its keys, and what each direction is multiplied with."""

    keys: Sequence[Key]
    scales: Sequence[float]


def add_steps_(flat: Tensor, layout: Layout, directions: Directions, steps: Sequence[Step]) -> None:
    """Take all the steps at once."""
    keys = [key for step in steps for key in step.keys]
    directions.add_to_(flat, keys, [scale for step in steps for scale in step.scales])
    layout.clear_padding_(flat)


def add_proven_steps_(
    flat: Tensor, layout: Layout, directions: Directions, steps: Sequence[Step]
) -> list[bytes]:
    """Take the steps at once on the CPU; return the digest that ``flat`` has after each."""
    hashes = [xxhash.xxh3_128() for _ in steps]
    for start in range(0, flat.numel(), PIECE):
        piece = flat[start : start + PIECE]
        array = piece.numpy()
        padding = list(_padding(array, start, layout))
        for step, found in zip(steps, hashes, strict=True):
            directions.add_to_(piece, step.keys, step.scales, start)
            for part in padding:
                part[:] = 0
            found.update(array.data)
    return [found.digest() for found in hashes]


def _padding(
    array: NDArray[np.float32], start: int, layout: Layout
) -> Iterator[NDArray[np.float32]]:
    """What lies between the tensors in a piece that begins at ``start``."""
    for span in layout.tensors:
        low, high = span.stop - start, -(-span.stop // TILE) * TILE - start
        if low < len(array) and high > 0 and low < high:
            yield array[max(low, 0) : high]
