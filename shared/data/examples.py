"""Blocks: examples as rows of tokens, those of one group beside each other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ConfigError, DataError
from shared.data.documents import Documents, evenly_spaced
from shared.models.model import Tokenizer
from shared.randomness.philox import words
from shared.randomness.streams import Key

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Examples of equal length, those of one group beside each other and in reading order."""

    tokens: NDArray[np.uint16] | NDArray[np.int32]  # (n, length); -1 after the end of a text
    groups: Rows  # (n,) ascending: the place of each block's group in ``names``
    names: tuple[str, ...]
    labels: Rows | None = None  # (n,) the class of each, where the task has classes

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Rows) -> "Examples":
        """Return some of the blocks."""
        labels = None if self.labels is None else self.labels[rows]
        return Examples(self.tokens[rows], self.groups[rows], self.names, labels)

    def batch(self, rows: Rows) -> Rows:
        """Return some blocks (len(rows), length) as tasks read them, labels in a column before."""
        tokens = self.tokens[rows].astype(np.int64)
        return tokens if self.labels is None else np.column_stack([self.labels[rows], tokens])


def cut(documents: Documents, tokenizer: Tokenizer, length: int) -> Examples:
    """Join each group's documents, an end-of-text token after each, and cut them into blocks.

    What is left at the end of a group, less than a block, is dropped.

    Raises:
        DataError: no group has as much as one block.
    """
    if length < 2:
        raise ConfigError(f"blocks of at least 2 tokens expected, got {length}")
    dtype = np.uint16 if tokenizer.size <= 1 << 16 else np.int32
    streams = {
        name: _blocks_of(texts, tokenizer, length).astype(dtype)
        for name, texts in _by_group(documents).items()
    }
    if not any(len(stream) for stream in streams.values()):
        raise DataError(f"none of {len(streams)} groups of documents fills a block of {length}")
    sizes = [len(stream) for stream in streams.values()]
    return Examples(
        np.concatenate(list(streams.values())),
        np.repeat(np.arange(len(sizes), dtype=np.int64), sizes),
        tuple(streams),
    )


def examples_with_labels(
    documents: Documents, classes: int, encode: Callable[[str], NDArray[np.int64]]
) -> Examples:
    """Make an example of each document, as ``encode`` gives its tokens, and keep its label.

    Raises:
        DataError: the documents have no labels, or other ones than 0 .. classes - 1.
    """
    labels = documents.labels
    if labels is None or not len(labels):
        raise DataError("documents with labels expected, got none: task classification needs them")
    if not 0 <= min(labels) <= max(labels) < classes:
        raise DataError(
            f"labels 0 to {classes - 1} expected, as many as label-words; got {min(labels)} to "
            f"{max(labels)}"
        )
    names = tuple(sorted(set(documents.groups)))
    number = {name: place for place, name in enumerate(names)}
    groups = np.array([number[group] for group in documents.groups], np.int64)
    order = np.argsort(groups, kind="stable")
    texts = [encode(documents.texts[row]) for row in order.tolist()]
    tokens = np.full((len(texts), max(map(len, texts))), -1, np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    return Examples(tokens, groups[order], names, np.array(labels, np.int64)[order])


def _by_group(documents: Documents) -> Mapping[str, list[str]]:
    groups: dict[str, list[str]] = {name: [] for name in sorted(set(documents.groups))}
    for text, group in zip(documents.texts, documents.groups, strict=True):
        groups[group].append(text)
    return groups


def _blocks_of(texts: list[str], tokenizer: Tokenizer, length: int) -> Rows:
    """Return the blocks (n, length) of one group."""
    end = np.array([tokenizer.end], np.int64)
    stream = np.concatenate([part for text in texts for part in (tokenizer.encode(text), end)])
    return stream[: len(stream) // length * length].reshape(-1, length)


def hold_out(blocks: Examples, fraction: float, most: int = 0) -> tuple[Examples, Examples]:
    """Split blocks into those that are trained on and those that the server evaluates on.

    The last ``fraction`` of each group is held out, at least one block of a group that has two.
    ``most`` (0: no limit) keeps so many of those, evenly spaced over the groups in their order, so
    that each group's part of the evaluation stays its part of the data.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"a held-out fraction in [0, 1) expected, got {fraction}")
    sizes = np.bincount(blocks.groups, minlength=len(blocks.names))
    held = np.maximum((sizes * fraction).astype(np.int64), (sizes > 1) & (fraction > 0))
    last = np.cumsum(sizes)[blocks.groups] - np.arange(len(blocks))  # 1 for a group's last block
    apart = last <= held[blocks.groups]
    evaluation = np.flatnonzero(apart)
    if 0 < most < len(evaluation):
        evaluation = evaluation[evenly_spaced(len(evaluation), most)]
    return blocks.take(np.flatnonzero(~apart)), blocks.take(evaluation)


def draw(key: Key, count: int, batch: int) -> Rows:
    """Draw the numbers (batch,) of examples out of ``count``, as a batch's ``key`` says.

    A pure function of its arguments (invariant I7). Distinct where there are enough, by Floyd's
    algorithm (Bentley and Floyd 1987); else each example comes ``batch // count`` times, and the
    rest are distinct. A place is word · places >> 32: off uniform by less than places / 2**32.
    """
    if count < 1 or batch < 1:
        raise DataError(f"a batch of at least 1 from at least 1 example expected: {batch}, {count}")
    whole, rest = divmod(batch, count)
    bits = words(key, range(-(-rest // 4))).reshape(-1).tolist()
    chosen: dict[int, None] = {}  # keeps the order
    for top, word in zip(range(count - rest, count), bits, strict=False):
        place = word * (top + 1) >> 32
        chosen[top if place in chosen else place] = None
    return np.append(np.arange(whole * count) % count, np.array([*chosen], np.int64))
