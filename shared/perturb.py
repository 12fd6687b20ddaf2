"""The model evaluated at θ + scale * z while θ itself is never written."""

from collections.abc import Iterator
from contextlib import contextmanager

from shared.directions import Directions, Key
from shared.flat import FlatModel
from shared.interception import Interception
from shared.pieces import Held, Point

SCRATCH = 1 << 18  # elements, 1 MiB of float32: stays in a core's cache while it is multiplied


class Perturber:
    """Evaluates a module at perturbed parameters, in a scratch of fixed size.

    Torch functions that are handed a trainable parameter get it perturbed: products with large
    matrices block by block through the scratch, embeddings only the rows they look up, all others
    the whole tensor, which is dropped at once. Where all parameters fit into the scratch, they are
    perturbed there in one go and the module's parameters are views of it meanwhile: the same
    numbers, without the price of looking at every torch function.

    Invariant I3: θ has the same bits afterwards, also where the module raises.
    """

    def __init__(self, model: FlatModel, directions: Directions, scratch: int = SCRATCH) -> None:
        self._model, self._directions = model, directions
        size = max(scratch, _widest(model))
        self._scratch = model.flat.new_empty(min(size, model.flat.numel()))
        named = dict(model.module.named_parameters())
        places = [(named[place.name], place) for place in model.layout.places]
        self._mode = Interception(
            {
                id(p): Held(model.flat[place.start : place.stop], place.start, place.shape)
                for p, place in places
            }
        )
        self._pairs = []
        if self._scratch.numel() == model.flat.numel():
            own, other = model.layout.views(model.flat), model.layout.views(self._scratch)
            self._pairs = [(p, own[place.name], other[place.name]) for p, place in places]

    @contextmanager
    def at(self, key: Key, scale: float) -> Iterator[None]:
        """While this is active the module computes with θ + scale * z(key)."""
        if self._pairs:
            with self._swapped(key, scale):
                yield
            return
        self._mode.point = Point(self._directions, self._scratch, key, scale)
        try:
            with self._mode:
                yield
        finally:
            self._mode.point = None

    @contextmanager
    def _swapped(self, key: Key, scale: float) -> Iterator[None]:
        self._directions.perturbed_(self._scratch, self._model.flat, 0, key, scale)
        try:
            for parameter, _, perturbed in self._pairs:
                parameter.data = perturbed
            yield
        finally:
            for parameter, own, _ in self._pairs:
                parameter.data = own


def _widest(model: FlatModel) -> int:
    """Elements of the longest row of a matrix: the least that a block can be."""
    return max(
        (place.shape[-1] for place in model.layout.places if len(place.shape) == 2), default=1
    )
