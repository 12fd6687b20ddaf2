"""Examples as rows of tokens: cut from documents, held out for evaluation, drawn for batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ConfigError, DataError
from shared.data.documents import Documents, space_evenly
from shared.models.model import Tokenizer
from shared.randomness.philox import words
from shared.randomness.streams import Key

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Examples of equal length, those of one group beside each other and in reading order."""

    tokens: NDArray[np.uint16] | NDArray[np.int32]  # (n, length); -1 after the end of a text
    groups: Rows  # (n,) ascending: the index in ``names`` of each example's group
    names: tuple[str, ...]
    labels: Rows | None = None  # (n,) the class of each, if the task has classes

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Rows) -> "Examples":
        """Return some of the examples."""
        labels = None if self.labels is None else self.labels[rows]
        return Examples(self.tokens[rows], self.groups[rows], self.names, labels)

    def batch(self, rows: Rows) -> Rows:
        """Return rows (len(rows), length) as tasks read them; labels are one more column before."""
        tokens = self.tokens[rows].astype(np.int64)
        return tokens if self.labels is None else np.column_stack([self.labels[rows], tokens])


def cut_blocks(documents: Documents, tokenizer: Tokenizer, length: int) -> Examples:
    """Join each group's documents, an end-of-text token after each, and cut them into blocks.

    The end of a group that fills no block is dropped.

    Raises:
        ConfigError: ``length`` is below 2.
        DataError: no group fills a block.
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
    """Make an example of each document: its tokens by ``encode``, and its label.

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
    number = {name: index for index, name in enumerate(names)}
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


def hold_out(examples: Examples, fraction: float, most: int = 0) -> tuple[Examples, Examples]:
    """Split examples into a training and an evaluation part.

    The last ``fraction`` of each group is held out, at least one example of a group that has two.
    ``most`` (0: no limit) keeps that many of those, evenly spaced over the groups in their order:
    each group's proportion of the evaluation is its proportion of the data.

    Raises:
        ConfigError: ``fraction`` is outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"a held-out fraction in [0, 1) expected, got {fraction}")
    sizes = np.bincount(examples.groups, minlength=len(examples.names))
    counts = np.maximum((sizes * fraction).astype(np.int64), (sizes > 1) & (fraction > 0))
    last = np.cumsum(sizes)[examples.groups] - np.arange(len(examples))  # 1 for a group's last
    apart = last <= counts[examples.groups]
    evaluation = np.flatnonzero(apart)
    if 0 < most < len(evaluation):
        evaluation = evaluation[space_evenly(len(evaluation), most)]
    return examples.take(np.flatnonzero(~apart)), examples.take(evaluation)


def draw(key: Key, count: int, batch: int) -> Rows:
    """Draw the rows (batch,) of ``count`` examples, as the ``key`` of a batch says.

    A pure function of its arguments (invariant I7). Rows are distinct if there are enough, by
    Floyd's algorithm (Bentley and Floyd 1987). Else each row comes ``batch // count`` times, and
    the rest are distinct. Of n rows one is word · n >> 32: off uniform by less than n / 2**32.

    Raises:
        DataError: there is no example, or an empty batch.
    """
    if count < 1 or batch < 1:
        raise DataError(f"a batch of at least 1 from at least 1 example expected: {batch}, {count}")
    whole, rest = divmod(batch, count)
    bits = words(key, range(-(-rest // 4))).reshape(-1).tolist()
    chosen: dict[int, None] = {}  # keeps the order
    for top, word in zip(range(count - rest, count), bits, strict=False):
        row = word * (top + 1) >> 32
        chosen[top if row in chosen else row] = None
    return np.append(np.arange(whole * count) % count, np.array([*chosen], np.int64))
