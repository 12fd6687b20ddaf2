"""A model evaluated at θ + scale * z, one point at a time, while θ itself is never written."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from shared.base.flat import TILE, FlatModel
from shared.directions import Capturable, Directions, KeySlot, Multiplies
from shared.estimation.blockwise import FlatParameter, PerturbedPoint
from shared.estimation.interception import Interception
from shared.randomness.streams import Key

THREAD_SCRATCH = 1 << 17  # elements for a thread, 512 KiB of float32: stay in its core's cache
LEAST_THREADS = 2  # the scratch is at least as large as for these
CUDA_SCRATCH = 1 << 22  # elements: few kernels to start, and small beside the card's cache
SCRATCH_SHARE = 16  # more threads never make the scratch exceed one part in 16 of the parameters
SMALL_TILES = 8  # tiles of a small tensor at most
COPIES_SHARE = 64  # the copies take at most one part in 64 of the parameters, or the scratch's size


class Perturber:
    """Evaluates a module at perturbed parameters, in a scratch of fixed size.

    A torch function with a trainable parameter among its arguments gets it perturbed. Products with
    large matrices go block by block through the scratch, embeddings perturb only the rows that they
    look up, small tensors come from a copy of them all. Any other function gets the whole perturbed
    tensor, which is dropped at once. If all parameters fit into the scratch, they are perturbed
    there in one go and the module's parameters are views of it meanwhile: the same numbers, without
    the cost of inspecting every torch function.

    Invariant I3: θ has the same bits afterwards, also if the module raises. Casts that
    ``torch.autocast`` keeps are dropped before and after each point.
    """

    def __init__(
        self, model: FlatModel, directions: Directions, scratch: int | None = None
    ) -> None:
        self._model, self._directions = model, directions
        self._multiplies = directions if isinstance(directions, Multiplies) else None
        self._slot: KeySlot | None = None
        if isinstance(directions, Capturable):
            self._slot = directions.slot(model.flat.device)
        roomy = scratch_size(model.flat.numel(), torch.get_num_threads(), model.flat.device.type)
        size = max(roomy if scratch is None else scratch, _widest(model))
        self._scratch = model.flat.new_empty(min(size, model.flat.numel()))
        named = dict(model.module.named_parameters())
        spans = [(named[span.name], span) for span in model.layout.tensors]
        self._pairs = []
        if self._scratch.numel() == model.flat.numel():
            own, other = model.layout.views(model.flat), model.layout.views(self._scratch)
            self._pairs = [(p, own[span.name], other[span.name]) for p, span in spans]
        copied = directions.pointwise and not self._pairs
        self._small = SmallTensors(model, size if copied else 0)
        self._mode = Interception(
            {
                id(p): FlatParameter(
                    model.flat[span.start : span.stop],
                    span.start,
                    span.shape,
                    self._small.copies.get(span.start),
                )
                for p, span in spans
            }
        )

    @property
    def is_active(self) -> bool:
        """Whether the module computes at a perturbed point now."""
        return self._mode.point is not None

    @property
    def is_capturable(self) -> bool:
        """Whether a captured pass at one point computes at others too, as at their keys."""
        return self._slot is not None

    def _hold(self, key: Key, scale: float) -> AbstractContextManager[None]:
        """Let kernels read key and scale in the slot, if there is one."""
        return nullcontext() if self._slot is None else self._slot.active(key, scale)

    @contextmanager
    def at(self, key: Key, scale: float) -> Iterator[None]:
        """Let the module compute with θ + scale * z(key) while this is active.

        Raises:
            RuntimeError: it is active already; points do not add up.
        """
        if self._mode.point is not None:
            raise RuntimeError("the model is at a perturbed point already")
        self._mode.point = PerturbedPoint(
            self._directions, self._scratch, key, scale, self._multiplies
        )
        torch.clear_autocast_cache()  # casts of θ, or of another point
        try:
            point = self._swap(key, scale) if self._pairs else self._intercept(key, scale)
            with self._hold(key, scale), point:
                yield
        finally:
            self._mode.point = None
            torch.clear_autocast_cache()

    @contextmanager
    def _intercept(self, key: Key, scale: float) -> Iterator[None]:
        self._small.perturb_(self._directions, key, scale)
        with self._mode:
            yield

    @contextmanager
    def _swap(self, key: Key, scale: float) -> Iterator[None]:
        self._directions.perturb_(self._scratch, self._model.flat, 0, key, scale)
        try:
            for parameter, _, perturbed in self._pairs:
                parameter.data = perturbed
            yield
        finally:
            for parameter, own, _ in self._pairs:
                parameter.data = own


def scratch_size(size: int, threads: int, device: str = "cpu") -> int:
    """Elements of scratch for ``size`` parameters: what threads or the card keep in caches."""
    most = CUDA_SCRATCH if device == "cuda" else threads * THREAD_SCRATCH
    return max(LEAST_THREADS * THREAD_SCRATCH, min(most, size // SCRATCH_SHARE))


def _widest(model: FlatModel) -> int:
    """Elements of the longest row of a matrix: the least that a block can be."""
    return max((span.shape[-1] for span in model.layout.tensors if len(span.shape) == 2), default=1)


class SmallTensors:
    """Perturbed copies of the tensors of few tiles, made all at once.

    Norms and biases are many and small: a launch for each takes longer than the work in it. As many
    are copied as fit into ``room`` elements or into a small share of the parameters; none if
    ``room`` is 0. They are drawn as rows of tiles, so directions must be pointwise.
    """

    def __init__(self, model: FlatModel, room: int) -> None:
        left = max(room, model.flat.numel() // COPIES_SHARE) // TILE if room else 0
        tiles: list[int] = []
        chosen = []
        for span in model.layout.tensors:
            first, stop = span.start // TILE, -(-span.stop // TILE)
            if stop - first <= min(SMALL_TILES, left - len(tiles)):
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
