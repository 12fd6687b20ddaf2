"""Activation caching: frozen modules are computed once for a batch, not for every query.

The activations before the first trained parameter are the same at every perturbed point. If only a
head or the last layers are trained, they are most of a forward pass.
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

MOST_MISSES = 32  # in a row, after which a module is no longer checked
RESULTS_SHARE = 8  # results take at most one part in 8 of the module's bytes, or LEAST_BYTES
LEAST_BYTES = 16 << 20


@dataclass
class FrozenPrefixCache:
    """The largest modules of a model without a trained parameter, and their last outputs.

    No bit changes: a module in evaluation mode is a function of its input, which is compared by its
    digest. An output is cached only after the module has seen the same input twice. Modules
    downstream of a trained parameter never do; after MOST_MISSES misses they are no longer checked.
    """

    model: FlatModel
    _modules: list["CachedModule"] = field(init=False)
    _results: "ResultCache" = field(init=False)

    def __post_init__(self) -> None:
        module = self.model.module
        named = dict(module.named_parameters())
        trained = {id(named[span.name]) for span in self.model.layout.tensors}
        size = sum(p.numel() * p.element_size() for p in module.parameters())
        self._results = ResultCache(max(size // RESULTS_SHARE, LEAST_BYTES))
        largest = {id(part): part for part in _largest(module, trained)}
        self._modules = [CachedModule(part, self._results) for part in largest.values()]

    @property
    def is_empty(self) -> bool:
        """Whether no module is free of trained parameters, so that nothing is ever cached."""
        return not self._modules

    @contextmanager
    def reuse(self) -> Iterator[None]:
        """Return cached outputs for inputs seen before, while this is active; then drop them."""
        active = [cached for cached in self._modules if cached.misses < MOST_MISSES]
        try:
            for cached in active:
                cached.install()
            yield
        finally:
            for cached in active:
                cached.uninstall()
            self._results.clear()


class ResultCache:
    """Outputs of modules by module and input; the oldest are evicted to bound the bytes."""

    def __init__(self, most: int) -> None:
        self._most, self.used = most, 0
        self._entries: OrderedDict[tuple[int, bytes], tuple[Any, int]] = OrderedDict()
        self._evicted: set[tuple[int, bytes]] = set()  # stored again, they would be evicted again

    def get(self, key: tuple[int, bytes]) -> tuple[Any] | None:
        """A copy, since the caller may write into it; None: there is no such entry."""
        entry = self._entries.get(key)
        return None if entry is None else (copy.deepcopy(entry[0]),)

    def put(self, key: tuple[int, bytes], output: Any) -> None:  # noqa: ANN401
        """Store a copy, unless it is larger than the cache or was evicted before."""
        size = _size(output)
        if size > self._most or key in self._evicted:
            return
        while self.used + size > self._most:
            oldest, (_, freed) = self._entries.popitem(last=False)
            self.used -= freed
            self._evicted.add(oldest)
        self._entries[key] = copy.deepcopy(output), size
        self.used += size

    def clear(self) -> None:
        """Drop all entries."""
        self._entries.clear()
        self._evicted.clear()
        self.used = 0


@dataclass
class CachedModule:
    """A module whose output may come from the cache."""

    module: nn.Module
    results: ResultCache
    misses: int = 0  # in a row
    _is_worth_it: bool = False  # it saw the same input twice: its outputs are worth their memory
    _seen: set[bytes] = field(default_factory=set)  # digests of its inputs
    _own: Any = None  # the instance's own ``forward``, if it has one besides its class's

    def install(self) -> None:
        """Let calls of the module look into the cache first."""
        self._own = vars(self.module).get("forward")
        self.module.forward = self._wrap(self.module.forward)

    def uninstall(self) -> None:
        """Give the module its own ``forward`` back."""
        self._seen.clear()
        if self._own is None:
            del self.module.forward
        else:
            self.module.forward = self._own

    def _wrap(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def call(*args: Any, **named: Any) -> Any:  # noqa: ANN401
            skips = self.misses >= MOST_MISSES or torch.is_grad_enabled() or self.module.training
            if skips or not _is_plain((args, named)):
                return forward(*args, **named)
            digest = _digest((args, named))
            if (cached := self.results.get((id(self), digest))) is not None:
                self.misses = 0
                return cached[0]
            output = forward(*args, **named)
            self._count(digest)
            if self._is_worth_it and _is_plain(output):
                self.results.put((id(self), digest), output)
            return output

        return call

    def _count(self, digest: bytes) -> None:
        """Note an input that was not in the cache."""
        again = digest in self._seen
        self._seen.add(digest)
        self.misses = 0 if again else self.misses + 1
        self._is_worth_it |= again


def _largest(module: nn.Module, trained: set[int]) -> Iterator[nn.Module]:
    """The outermost modules that have parameters, all of them frozen.

    Single embeddings are left out: a lookup is as fast as the cache.
    """
    mine = {id(parameter) for parameter in module.parameters()}
    if not mine:
        return
    if mine & trained or isinstance(module, nn.ModuleList | nn.ModuleDict):
        for child in module.children():
            yield from _largest(child, trained)
    elif not isinstance(module, nn.Embedding):
        yield module


def _is_plain(value: Any) -> bool:  # noqa: ANN401
    """Whether a value consists of tensors and simple types alone; a cache of keys does not."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, Tensor | bool | int | float | str)


def _digest(value: Any) -> bytes:  # noqa: ANN401
    """16 bytes over types, shapes and bits of a plain value."""
    digest = xxhash.xxh3_128()
    for part in _parts(value):
        digest.update(part)
    return digest.digest()


def _parts(value: Any) -> Iterator[bytes]:  # noqa: ANN401
    """The bytes that a plain value is known by."""
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)} {value.device}".encode()
        if value.numel():
            yield digest_of(value.contiguous())
    elif isinstance(value, dict):
        yield f"dict {len(value)}".encode()
        for key, item in value.items():
            yield repr(key).encode()
            yield from _parts(item)
    elif isinstance(value, tuple | list):
        yield f"{type(value).__name__} {len(value)}".encode()
        for item in value:
            yield from _parts(item)
    else:
        yield f"{type(value).__name__} {value!r}".encode()


def _size(value: Any) -> int:  # noqa: ANN401
    """Bytes of the tensors in a plain value."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, tuple | list) else 0
