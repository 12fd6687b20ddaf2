"""The model evaluated at θ + scale * z while its parameters stay as they are (interim, whole vector)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shared.directions import Directions, Key
from shared.flat import FlatModel


class Perturber:
    """Owns one scratch vector; inside ``at`` the module's parameters are views of it."""

    def __init__(self, model: FlatModel, directions: Directions) -> None:
        self._model, self._directions = model, directions
        self._scratch = torch.empty_like(model.flat)
        named = dict(model.module.named_parameters())
        here, there = model.layout.views(model.flat), model.layout.views(self._scratch)
        self._pairs = [(named[name], here[name], there[name]) for name in here]

    @contextmanager
    def at(self, key: Key, scale: float) -> Iterator[None]:
        """Evaluate at θ + scale * z(key) while this is active."""
        self._directions.perturbed_(self._scratch, self._model.flat, 0, key, scale)
        try:
            for parameter, _, perturbed in self._pairs:
                parameter.data = perturbed
            yield
        finally:
            for parameter, own, _ in self._pairs:
                parameter.data = own
