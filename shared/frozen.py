"""Parts of a model that a run does not train are computed once for a batch, not for every query.

What comes before the first trained parameter is the same at every perturbed point. Where a head or
last layers are trained that is most of a forward pass.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shared.flat import FlatModel

PATIENCE = 3  # calls in a row with something new, after which a part is always computed


@dataclass
class Frozen:
    """The largest parts of a model without a trained parameter; knows their last results.

    The bits are those of computing all anew: a part in evaluation mode is a function of what it is
    given. What it is given is compared number by number, so a part behind trained parameters, which
    gets something new each time, is told from one before them, and soon let alone.
    """

    model: FlatModel
    _parts: list["Part"] = field(init=False)

    def __post_init__(self) -> None:
        named = dict(self.model.module.named_parameters())
        trained = {id(named[place.name]) for place in self.model.layout.places}
        self._parts = [Part(part) for part in _largest(self.model.module, trained)]

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """While this is active, a part that is given the same again gives the same again.

        Holds inputs and results of one call for each part; afterwards nothing.
        """
        live = [part for part in self._parts if part.misses < PATIENCE]
        try:
            for part in live:
                part.stand_in()
            yield
        finally:
            for part in live:
                part.stand_back()


@dataclass
class Part:
    """A module in whose place its last result stands."""

    module: nn.Module
    misses: int = 0  # in a row
    _own: Any = None  # its ``forward``, where the instance has one besides its class's
    _held: tuple[Any, Any] | None = None  # what it was given, and what it made of it

    def stand_in(self) -> None:
        """From now on calls of the module come here."""
        self._own = vars(self.module).get("forward")
        self.module.forward = self._called(self.module.forward)

    def stand_back(self) -> None:
        """The module is as it was, and nothing is held."""
        self._held = None
        if self._own is None:
            del self.module.forward
        else:
            self.module.forward = self._own

    def _called(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def call(*args: Any, **named: Any) -> Any:  # noqa: ANN401
            given = args, named
            if self.misses >= PATIENCE or torch.is_grad_enabled() or self.module.training:
                return forward(*args, **named)
            if self._held is not None and _same(self._held[0], given):
                self.misses = 0
                return copy.deepcopy(self._held[1])  # whoever gets it may write into it
            self._held, self.misses = None, self.misses + 1
            kept = copy.deepcopy(given) if _plain(given) and self.misses < PATIENCE else None
            made = forward(*args, **named)
            self._held = None if kept is None else (kept, copy.deepcopy(made))
            return made

        return call


def _largest(module: nn.Module, trained: set[int]) -> Iterator[nn.Module]:
    """The outermost parts that compute something and have none but frozen parameters."""
    mine = {id(parameter) for parameter in module.parameters()}
    if not mine:
        return
    if mine & trained or isinstance(module, nn.ModuleList | nn.ModuleDict):
        for child in module.children():
            yield from _largest(child, trained)
    else:
        yield module


def _plain(value: Any) -> bool:  # noqa: ANN401
    """Whether two of these can be told apart by what is in them; a cache of keys cannot."""
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    return value is None or isinstance(value, Tensor | bool | int | float | str)


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401
    """Whether two plain values are equal, their tensors to the bit but for the sign of zero."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and one.device == other.device and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
