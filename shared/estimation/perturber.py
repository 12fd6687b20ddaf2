"""The model evaluated at θ + scale * z while θ itself is never written."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shared.base.errors import ConfigError
from shared.base.flat import FlatModel
from shared.directions import Directions, Multiplies
from shared.estimation.blockwise import FlatParameter, PerturbedPoint
from shared.estimation.interception import Interception
from shared.estimation.small_tensors import SmallTensors
from shared.randomness.streams import Key

SCRATCH = 1 << 17  # elements for a thread, 512 KiB of float32: stay in its core's cache
LEAST = 2  # threads that scratch is held for
ON_CUDA = 1 << 22  # elements of scratch: few kernels to start, and small beside the card's cache
SHARE = 16  # of the parameters: more scratch than one part in so many is never taken for threads


class Perturber:
    """Evaluates a module at perturbed parameters, in a scratch of fixed size.

    Torch functions that are handed a trainable parameter get it perturbed: products with large
    matrices block by block through the scratch, embeddings only the rows they look up, small
    tensors from a copy of them all, any other the whole tensor, which is dropped at once. Where
    all parameters fit into the scratch, they are perturbed there in one go and the module's
    parameters are views of it meanwhile: the same numbers, without the price of looking at every
    torch function.

    Invariant I3: θ has the same bits afterwards, also where the module raises.

    Raises:
        ConfigError: a part of the module is scripted, so that its torch functions are not seen.
    """

    def __init__(
        self, model: FlatModel, directions: Directions, scratch: int | None = None
    ) -> None:
        _refuse_scripted(model)
        self._model, self._directions = model, directions
        self._multiplies = directions if isinstance(directions, Multiplies) else None
        roomy = room(model.flat.numel(), torch.get_num_threads(), model.flat.device.type)
        size = max(roomy if scratch is None else scratch, _widest(model))
        self._scratch = model.flat.new_empty(min(size, model.flat.numel()))
        named = dict(model.module.named_parameters())
        spans = [(named[span.name], span) for span in model.layout.tensors]
        self._pairs = []
        if self._scratch.numel() == model.flat.numel():
            own, other = model.layout.views(model.flat), model.layout.views(self._scratch)
            self._pairs = [(p, own[span.name], other[span.name]) for p, span in spans]
        self._vectors = SmallTensors(model, size if directions.pointwise and not self._pairs else 0)
        self._mode = Interception(
            {
                id(p): FlatParameter(
                    model.flat[span.start : span.stop],
                    span.start,
                    span.shape,
                    self._vectors.copies.get(span.start),
                )
                for p, span in spans
            }
        )

    @contextmanager
    def at(self, key: Key, scale: float) -> Iterator[None]:
        """While this is active the module computes with θ + scale * z(key).

        Raises:
            RuntimeError: it is active already; points do not add up.
        """
        if self._mode.point is not None:
            raise RuntimeError("the model is at a perturbed point already")
        self._mode.point = PerturbedPoint(
            self._directions, self._scratch, key, scale, self._multiplies
        )
        try:
            with self._swapped(key, scale) if self._pairs else self._intercepted(key, scale):
                yield
        finally:
            self._mode.point = None

    @contextmanager
    def _intercepted(self, key: Key, scale: float) -> Iterator[None]:
        self._vectors.perturb_(self._directions, key, scale)
        with self._mode:
            yield

    @contextmanager
    def _swapped(self, key: Key, scale: float) -> Iterator[None]:
        self._directions.perturb_(self._scratch, self._model.flat, 0, key, scale)
        try:
            for parameter, _, perturbed in self._pairs:
                parameter.data = perturbed
            yield
        finally:
            for parameter, own, _ in self._pairs:
                parameter.data = own


def _refuse_scripted(model: FlatModel) -> None:
    for name, part in model.module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise ConfigError(f"a module of torch functions expected, but {name!r} is scripted")


def room(size: int, threads: int, device: str = "cpu") -> int:
    """Elements of scratch: what threads or the card keep in caches, within a share of the model."""
    most = ON_CUDA if device == "cuda" else threads * SCRATCH
    return max(LEAST * SCRATCH, min(most, size // SHARE))


def _widest(model: FlatModel) -> int:
    """Elements of the longest row of a matrix: the least that a block can be."""
    return max((span.shape[-1] for span in model.layout.tensors if len(span.shape) == 2), default=1)
