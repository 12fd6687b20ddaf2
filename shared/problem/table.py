"""The examples of a problem, which are known by their numbers until a batch is needed.

A row of a batch is the number of an example in this process, so that shards, draws and batches are
those of any other task. Numbers are never sent and nothing random depends on them.
"""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.data import IterableDataset, default_collate

from shared.base.errors import DataError
from shared.data.examples import Examples

Numbers = NDArray[np.int64]
EXPECTED = "a Dataset with a length, or tensors of one length, expected"


class ExampleSource(Protocol):
    """Examples in a fixed order."""

    def __len__(self) -> int:
        """The number of examples."""

    def items(self, rows: Sequence[int]) -> list[Any]:
        """Some examples, each by itself."""

    def batch(self, rows: Sequence[int]) -> Any:  # noqa: ANN401  (whatever the loss reads)
        """Some examples, stacked."""


@dataclass(frozen=True)
class Tensors:
    """Tensors (n, ...) of one length, in a tuple, a dictionary or alone."""

    tree: Any
    length: int

    def __len__(self) -> int:
        return self.length

    def items(self, rows: Sequence[int]) -> list[Any]:
        """Some examples, each as the same tree of tensors (...)."""
        return [tree_map(lambda tensor, row=row: tensor[row], self.tree) for row in rows]

    def batch(self, rows: Sequence[int]) -> Any:  # noqa: ANN401
        """The same tree of tensors (B, ...)."""
        chosen = torch.tensor(rows, dtype=torch.int64)
        return tree_map(lambda tensor: tensor[chosen], self.tree)


@dataclass(frozen=True)
class Items:
    """A Dataset, whose items are read when a batch needs them."""

    dataset: Any
    collate: Callable[[list[Any]], Any]

    def __len__(self) -> int:
        return len(self.dataset)

    def items(self, rows: Sequence[int]) -> list[Any]:
        """Some items as the Dataset gives them."""
        return [self.dataset[row] for row in rows]

    def batch(self, rows: Sequence[int]) -> Any:  # noqa: ANN401
        """What ``collate`` makes of some items."""
        return self.collate(self.items(rows))


def stack_items(items: list[Any]) -> Any:  # noqa: ANN401
    """Stack items into a batch: torch's ``default_collate``, but a tuple stays a tuple.

    Raises:
        DataError: items are neither numbers, arrays nor tensors, or differ in shape.
    """
    try:
        batch = default_collate(items)
    except (TypeError, RuntimeError) as error:
        raise DataError(
            "app: examples of numbers, arrays or tensors, each of one shape, expected; "
            f"{error}. Convert them in the Dataset, or give the Problem a collate function"
        ) from error
    return tuple(batch) if isinstance(batch, list) else batch


def source_of(data: Any, collate: Callable[[list[Any]], Any] | None) -> ExampleSource:  # noqa: ANN401
    """What a problem's function returned, as a source of examples.

    Raises:
        DataError: it is something else, or there is no example.
    """
    leaves, _ = tree_flatten(data)
    if leaves and all(isinstance(leaf, Tensor | np.ndarray) for leaf in leaves):
        lengths = {len(leaf) if leaf.ndim else 0 for leaf in leaves}
        if len(lengths) != 1 or not max(lengths):
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
            raise DataError(f"app: {EXPECTED}, got tensors of shapes {shapes}")
        return Tensors(tree_map(torch.as_tensor, data), max(lengths))
    is_dataset = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, IterableDataset) or not is_dataset or isinstance(data, str | dict):
        raise DataError(f"app: {EXPECTED}, got {type(data).__name__}")
    if not len(data):
        raise DataError(f"app: {EXPECTED}, got a {type(data).__name__} without an example")
    return Items(data, collate or stack_items)


NO_EXAMPLES = Examples(np.zeros((0, 1), np.int32), np.zeros(0, np.int64), ())


@dataclass
class ExampleTable:
    """All examples that a process has loaded of a problem, numbered in the order of loading."""

    collate: Callable[[list[Any]], Any] | None = None
    _starts: list[int] = field(default_factory=list)
    _sources: list[ExampleSource] = field(default_factory=list)
    _known: dict[Hashable, tuple[Any, Numbers]] = field(default_factory=dict)

    def load(self, name: Hashable, make: Callable[[], Any]) -> tuple[Any, Numbers]:
        """What ``make`` returns, and the numbers (n,) of its examples; it is called once a name.

        Raises:
            DataError: what is returned has no examples.
        """
        if name not in self._known:
            data = make()
            source = source_of(data, self.collate)
            start = self._starts[-1] + len(self._sources[-1]) if self._sources else 0
            self._starts.append(start)
            self._sources.append(source)
            self._known[name] = data, np.arange(start, start + len(source))
        return self._known[name]

    def batch(self, rows: Tensor) -> Any:  # noqa: ANN401
        """The batch of the examples whose numbers are rows (B, 1), on the CPU."""
        places = [self._place(number) for number in rows[:, 0].tolist()]
        origins = {origin for origin, _ in places}
        if len(origins) == 1:
            return self._sources[origins.pop()].batch([row for _, row in places])
        items = [self._sources[origin].items([row])[0] for origin, row in places]
        return (self.collate or stack_items)(items)

    def _place(self, number: int) -> tuple[int, int]:
        """Source and row of an example."""
        origin = bisect_right(self._starts, number) - 1
        return origin, number - self._starts[origin]


def examples_of(numbers: Numbers, ids: Sequence[Any] | None = None) -> Examples:
    """Numbers (n,) of examples as rows; those of one natural id beside each other.

    Raises:
        DataError: not one id for each example.
    """
    tokens = numbers.astype(np.int32)[:, None]
    if ids is None:
        return Examples(tokens, np.arange(len(numbers)), ())
    if len(ids) != len(numbers):
        raise DataError(f"app: groups: {len(numbers)} ids expected, one an example; got {len(ids)}")
    names, groups = np.unique(np.asarray(ids).astype(str), return_inverse=True)
    order = np.argsort(groups, kind="stable")
    return Examples(tokens[order], groups[order].astype(np.int64), tuple(names.tolist()))
