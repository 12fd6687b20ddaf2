"""Perturbed copies of a model's small tensors, made all at once.

Norms and biases are many and small: a launch for each takes longer than the work in it.
"""

import torch
from torch import Tensor

from shared.base.flat import TILE, FlatModel
from shared.directions import Directions
from shared.randomness.streams import Key

SMALL = 8  # tiles of a tensor at most
SHARE = 64  # copies of at most one part in so many of the parameters, or of what the caller grants


class SmallTensors:
    """Copies of the tensors of few tiles: as many as fit into ``room`` or into a small share.

    They are drawn as rows of tiles, so directions must be pointwise. A room of 0 holds none.
    """

    def __init__(self, model: FlatModel, room: int) -> None:
        left = max(room, model.flat.numel() // SHARE) // TILE if room else 0
        tiles: list[int] = []
        chosen = []
        for span in model.layout.tensors:
            first, stop = span.start // TILE, -(-span.stop // TILE)
            if stop - first <= min(SMALL, left - len(tiles)):
                chosen.append((span, len(tiles) * TILE))
                tiles.extend(range(first, stop))
        self._source = model.flat.view(-1, TILE)
        self._tiles = torch.tensor(tiles, dtype=torch.int64, device=model.flat.device)
        self._rows = model.flat.new_empty(len(tiles), TILE)
        flat = self._rows.view(-1)
        self.copies: dict[int, Tensor] = {  # by the tensor's flat address
            span.start: flat[at : at + span.size].view(span.shape) for span, at in chosen
        }

    def perturb_(self, directions: Directions, key: Key, scale: float) -> None:
        """Let the copies be θ + scale * z(key)."""
        if self.copies:
            torch.index_select(self._source, 0, self._tiles, out=self._rows)
            directions.add_rows_(self._rows, self._tiles, 0, key, scale)
