"""Parts of a model that a run does not train are computed once for a batch, not for every query.

What comes before the first trained parameter is the same at every perturbed point. Where a head or
last layers are trained that is most of a forward pass.
"""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from shared.base.flat import FlatModel
from shared.replica.replica import digest_of

PATIENCE = 32  # calls in a row with something new, after which a part is always computed
SHARE, LEAST = 8, 16 << 20  # results take one part in so many of the module's bytes, or these


@dataclass
class FrozenPrefixCache:
    """The largest parts of a model without a trained parameter; knows their last results.

    The bits are those of computing all anew: a part in evaluation mode is a function of what it is
    given, which is known by its digest. A part behind trained parameters gets something new each
    time, and is soon let alone; nothing is held of it.
    """

    model: FlatModel
    _parts: list["CachedModule"] = field(init=False)
    _results: "Results" = field(init=False)

    def __post_init__(self) -> None:
        module = self.model.module
        named = dict(module.named_parameters())
        trained = {id(named[span.name]) for span in self.model.layout.tensors}
        size = sum(p.numel() * p.element_size() for p in module.parameters())
        self._results = Results(max(size // SHARE, LEAST))
        largest = {id(part): part for part in _largest(module, trained)}
        self._parts = [CachedModule(part, self._results) for part in largest.values()]

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """While this is active, a part that is given the same again gives the same again.

        Afterwards nothing is held.
        """
        live = [part for part in self._parts if part.misses < PATIENCE]
        try:
            for part in live:
                part.stand_in()
            yield
        finally:
            for part in live:
                part.stand_back()
            self._results.clear()


class Results:
    """What parts made of what they were given; the oldest go where there are too many bytes."""

    def __init__(self, most: int) -> None:
        self._most, self.used = most, 0
        self._held: OrderedDict[tuple[int, bytes], tuple[Any, int]] = OrderedDict()
        self._gone: set[tuple[int, bytes]] = set()  # what went once would go again, with others

    def get(self, key: tuple[int, bytes]) -> tuple[Any] | None:
        """A copy, since whoever gets it may write into it; None: it is not held."""
        found = self._held.get(key)
        return None if found is None else (copy.deepcopy(found[0]),)

    def put(self, key: tuple[int, bytes], made: Any) -> None:  # noqa: ANN401
        """Hold a copy, if there is room for it at all."""
        size = _size(made)
        if size > self._most or key in self._gone:
            return
        while self.used + size > self._most:
            oldest, (_, freed) = self._held.popitem(last=False)
            self.used -= freed
            self._gone.add(oldest)
        self._held[key] = copy.deepcopy(made), size
        self.used += size

    def clear(self) -> None:
        """Hold nothing."""
        self._held.clear()
        self._gone.clear()
        self.used = 0


@dataclass
class CachedModule:
    """A module in whose place a result may stand."""

    module: nn.Module
    results: Results
    misses: int = 0  # in a row
    _proven: bool = False  # it was given the same twice: its results are worth their memory
    _seen: set[bytes] = field(default_factory=set)  # digests of what it was given
    _own: Any = None  # its ``forward``, where the instance has one besides its class's

    def stand_in(self) -> None:
        """From now on calls of the module come here."""
        self._own = vars(self.module).get("forward")
        self.module.forward = self._called(self.module.forward)

    def stand_back(self) -> None:
        """The module is as it was."""
        self._seen.clear()
        if self._own is None:
            del self.module.forward
        else:
            self.module.forward = self._own

    def _called(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def call(*args: Any, **named: Any) -> Any:  # noqa: ANN401
            aside = self.misses >= PATIENCE or torch.is_grad_enabled() or self.module.training
            if aside or not _plain((args, named)):
                return forward(*args, **named)
            given = _digest((args, named))
            if (found := self.results.get((id(self), given))) is not None:
                self.misses = 0
                return found[0]
            made = forward(*args, **named)
            again = given in self._seen
            self._seen.add(given)
            self.misses = 0 if again else self.misses + 1
            self._proven |= again
            if self._proven and _plain(made):
                self.results.put((id(self), given), made)
            return made

        return call


def _largest(module: nn.Module, trained: set[int]) -> Iterator[nn.Module]:
    """The outermost parts that compute something and have none but frozen parameters.

    A lone embedding computes nothing: its rows are as soon looked up as remembered.
    """
    mine = {id(parameter) for parameter in module.parameters()}
    if not mine:
        return
    if mine & trained or isinstance(module, nn.ModuleList | nn.ModuleDict):
        for child in module.children():
            yield from _largest(child, trained)
    elif not isinstance(module, nn.Embedding):
        yield module


def _plain(value: Any) -> bool:  # noqa: ANN401
    """Whether all that is in it can be seen; of a cache of keys it cannot."""
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    return value is None or isinstance(value, Tensor | bool | int | float | str)


def _digest(value: Any) -> bytes:  # noqa: ANN401
    """16 bytes over types, shapes and bits of a plain value."""
    found = xxhash.xxh3_128()
    for part in _spelt(value):
        found.update(part)
    return found.digest()


def _spelt(value: Any) -> Iterator[bytes]:  # noqa: ANN401
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)} {value.device}".encode()
        if value.numel():
            yield digest_of(value.contiguous())
    elif isinstance(value, dict):
        yield f"dict {len(value)}".encode()
        for key, item in value.items():
            yield repr(key).encode()
            yield from _spelt(item)
    elif isinstance(value, tuple | list):
        yield f"{type(value).__name__} {len(value)}".encode()
        for item in value:
            yield from _spelt(item)
    else:
        yield f"{type(value).__name__} {value!r}".encode()


def _size(value: Any) -> int:  # noqa: ANN401
    """Bytes of the tensors in a plain value."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, tuple | list) else 0
