"""Replays many rounds in one pass: each piece of the parameters takes all steps while in cache.

This is for rounds whose steps only add directions. Every element then sees the same additions in
the same order as round by round, so the bits are the same.
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

PASS_KEYS = 1 << 14  # directions of one pass, at most, unless one round has more
Floats = NDArray[np.float32]
PIECE = 1 << 18  # elements, 1 MiB: whole tiles that stay in a core's cache from round to round


@dataclass(frozen=True, slots=True)
class Step:
    """One round's step: the keys of its directions and the factor of each."""

    keys: Sequence[Key]
    scales: Sequence[float]


def add_steps_(flat: Tensor, layout: Layout, directions: Directions, steps: Sequence[Step]) -> None:
    """Add all steps to the parameters ``flat`` (size,) in one pass, in order."""
    keys = [key for step in steps for key in step.keys]
    directions.add_to_(flat, keys, [scale for step in steps for scale in step.scales])
    layout.clear_padding_(flat)


def add_steps_with_digests_(
    flat: Tensor, layout: Layout, directions: Directions, steps: Sequence[Step]
) -> list[bytes]:
    """Add all steps to ``flat`` (size,) on the CPU; return its digest after each step."""
    hashes = [xxhash.xxh3_128() for _ in steps]
    for start in range(0, flat.numel(), PIECE):
        piece = flat[start : start + PIECE]
        array = piece.numpy()
        padding = list(_find_padding(array, start, layout))
        for step, digest in zip(steps, hashes, strict=True):
            directions.add_to_(piece, step.keys, step.scales, start)
            for part in padding:
                part[:] = 0
            digest.update(array.data)
    return [digest.digest() for digest in hashes]


def _find_padding(
    array: NDArray[np.float32], start: int, layout: Layout
) -> Iterator[NDArray[np.float32]]:
    """Yield what lies between the tensors in a piece that begins at address ``start``."""
    for span in layout.tensors:
        low, high = span.stop - start, -(-span.stop // TILE) * TILE - start
        if low < len(array) and high > 0 and low < high:
            yield array[max(low, 0) : high]
