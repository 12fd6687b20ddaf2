"""Examples as rows of tokens, cut from documents."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ConfigError, DataError
from shared.data.documents import UNLABELLED, Documents
from shared.models.model import Tokenizer

LOG = logging.getLogger("dandelion")
KEPT_SHARE = 0.75  # of the tokens; if the blocks have fewer, that is said, or parts are merged
FEW_ROWS, MANY_PARTS = 5, 8  # parts of fewer documents are merged while there are twice as many
Rows = NDArray[np.int64]
Tokens = NDArray[np.uint16] | NDArray[np.int32]
Stream = NDArray[Any]  # tokens (n,) of one group, of either kind


@dataclass(frozen=True)
class Examples:
    """Examples of equal length, those of one group beside each other and in reading order."""

    tokens: Tokens  # (n, length); -1 after the end of a text
    groups: Rows  # (n,) ascending: the index in ``names`` of each example's group
    names: tuple[str, ...]
    labels: Rows | None = None  # (n,) the class of each, if the task has classes
    targets: NDArray[np.float64] | None = None  # (n,) the number of each, if the task has numbers

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Rows) -> "Examples":
        """Return some of the examples."""
        labels = None if self.labels is None else self.labels[rows]
        targets = None if self.targets is None else self.targets[rows]
        return Examples(self.tokens[rows], self.groups[rows], self.names, labels, targets)

    def batch(self, rows: Rows) -> Rows:
        """Return rows (len(rows), length) as tasks read them.

        A label, or the bits of a target, is one more column before.
        """
        tokens = self.tokens[rows].astype(np.int64)
        if self.targets is not None:
            return np.column_stack([self.targets[rows].view(np.int64), tokens])
        return tokens if self.labels is None else np.column_stack([self.labels[rows], tokens])


def cut_blocks(documents: Documents, tokenizer: Tokenizer, length: int) -> Examples:
    """Join each group's documents, an end-of-text token after each, and cut them into blocks.

    The end of a group that fills no block is dropped. If none of the groups fills a block and they
    are but parts of consecutive documents, neighbours are merged.

    Raises:
        ConfigError: ``length`` is below 2.
        DataError: no group fills a block.
    """
    if length < 2:
        raise ConfigError(f"blocks of at least 2 tokens expected, got {length}")
    dtype = np.uint16 if tokenizer.size <= 1 << 16 else np.int32
    streams: dict[str, Stream] = {
        name: _stream(texts, tokenizer).astype(dtype)
        for name, texts in _by_group(documents).items()
    }
    room = length - len(tokenizer.start)
    if documents.anonymous and all(len(stream) < room for stream in streams.values()):
        streams = _merge_streams(documents, streams, room)
    longest, total = max(map(len, streams.values())), sum(map(len, streams.values()))
    if longest < room:
        raise DataError(
            f"none of {len(streams)} groups of documents fills a block of {length} tokens; set "
            f"block-size to at most {longest + len(tokenizer.start)}, the longest group, or take "
            "larger groups by partition-by"
        )
    blocks = [_cut(stream, tokenizer.start, length) for stream in streams.values()]
    sizes = [len(part) for part in blocks]
    if sum(sizes) * room < KEPT_SHARE * total:
        LOG.warning(
            "%d of %d tokens fill no block of %d and are left out: groups are short; a smaller "
            "block-size takes more of them", total - sum(sizes) * room, total, length,
        )  # fmt: skip
    return Examples(
        np.concatenate(blocks),
        np.repeat(np.arange(len(sizes), dtype=np.int64), sizes),
        tuple(streams),
    )


def examples_with_labels(
    documents: Documents, classes: int, encode: Callable[[str], NDArray[np.int64]]
) -> Examples:
    """Make an example of each document: its tokens by ``encode``, and its label.

    Documents without a class, or without a token, are left out and counted.

    Raises:
        DataError: no document has a label and a token, or labels are not 0 .. classes - 1.
    """
    labels = _read_labels(documents, classes)
    return examples_of_rows(documents, labels, lambda row: encode(documents.texts[row]))


def examples_of_rows(
    documents: Documents, labels: Rows, encode: Callable[[int], NDArray[np.int64]]
) -> Examples:
    """Make an example of each document: its tokens by ``encode`` of its number, and its label.

    Those without a label (n,), or without a token, are left out and counted.

    Raises:
        DataError: no document has a token.
    """
    documents = _with_larger_parts(documents)
    names = tuple(sorted(set(documents.groups)))
    number = {name: index for index, name in enumerate(names)}
    groups = np.array([number[group] for group in documents.groups], np.int64)
    order = np.argsort(groups, kind="stable")
    order = order[labels[order] != UNLABELLED]
    texts = [encode(row) for row in order.tolist()]
    is_text = np.array([len(text) > 0 for text in texts])
    if not is_text.any():
        raise DataError(f"texts expected, got {len(texts)} of which none has a token")
    if missing := len(documents.texts) - int(is_text.sum()):
        LOG.warning(
            "%d of %d documents have no class or no token and are left out",
            missing, len(documents.texts),
        )  # fmt: skip
    texts, order = [text for text in texts if len(text)], order[is_text]
    tokens = np.full((len(texts), max(map(len, texts))), -1, np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    return Examples(tokens, groups[order], names, labels[order])


def rows_of_groups(documents: Documents, texts: Sequence[Rows], pack_to: int = 0) -> Examples:
    """Make examples of rows that are made already, one of each document, sorted by group.

    Args:
        documents: their groups count.
        texts: tokens (T_i,) of each document.
        pack_to: rows of a group are joined while they have at most so many tokens; 0: they are not.

    Raises:
        DataError: there is no document.
    """
    if not texts:
        raise DataError("documents expected, got none")
    documents = _with_larger_parts(documents)
    names = tuple(sorted(set(documents.groups)))
    groups = np.searchsorted(names, documents.groups).astype(np.int64)
    order = np.argsort(groups, kind="stable")
    rows, groups = [texts[row] for row in order.tolist()], groups[order]
    if pack_to:
        rows, groups = _pack(rows, groups, pack_to)
    tokens = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for row, text in zip(tokens, rows, strict=True):
        row[: len(text)] = text
    return Examples(tokens, groups, names)


def _pack(rows: Sequence[Rows], groups: Rows, length: int) -> tuple[list[Rows], Rows]:
    """Join neighbouring rows of one group while they have at most ``length`` tokens."""
    packed: list[list[Rows]] = []
    numbers: list[int] = []
    for row, group in zip(rows, groups.tolist(), strict=True):
        fits = packed and numbers[-1] == group and sum(map(len, packed[-1])) + len(row) <= length
        if fits:
            packed[-1].append(row)
        else:
            packed.append([row])
            numbers.append(group)
    return [np.concatenate(parts) for parts in packed], np.array(numbers, np.int64)


def examples_with_targets(
    documents: Documents, encode: Callable[[str], NDArray[np.int64]]
) -> Examples:
    """Make an example of each document: its tokens by ``encode``, and its number.

    Raises:
        DataError: no document has a number and a token.
    """
    if documents.numbers is None:
        raise DataError(
            "documents with numbers expected, got none: task regression needs a folder of tables "
            "with a column of numbers"
        )
    numbers = np.asarray(documents.numbers, np.float64)
    rows = np.where(np.isnan(numbers), UNLABELLED, np.arange(len(numbers)))
    whole = examples_of_rows(documents, rows, lambda row: encode(documents.texts[row]))
    return replace(whole, labels=None, targets=numbers[whole.labels])


def _read_labels(documents: Documents, classes: int) -> Rows:
    """The labels (n,), in range or UNLABELLED.

    Raises:
        DataError: there are none, or others.
    """
    labels = np.asarray([] if documents.labels is None else documents.labels, np.int64)
    known = labels[labels != UNLABELLED]
    if not len(known):
        reason = f": {documents.no_labels}" if documents.no_labels else ""
        raise DataError(
            f"documents with labels expected, got none{reason}: task classification needs them"
        )
    if not 0 <= known.min() <= known.max() < classes:
        raise DataError(
            f"labels 0 to {classes - 1} expected, as many as label-words; got {known.min()} to "
            f"{known.max()}. Numbers are classes as they stand; if they do not begin at 0, name "
            "them all in label-words"
        )
    return labels


def _with_larger_parts(documents: Documents) -> Documents:
    """Merge parts of few consecutive documents, which are no natural groups, while many are left.

    Parts of a document or two are dealt in turn, and so are the classes if they come in turn.
    """
    while documents.anonymous:
        parts = len(set(documents.groups))
        if len(documents.groups) >= FEW_ROWS * parts or parts < 2 * MANY_PARTS:
            break
        documents = documents.merge_parts()
    return documents


def _by_group(documents: Documents) -> Mapping[str, list[str]]:
    groups: dict[str, list[str]] = {name: [] for name in sorted(set(documents.groups))}
    for text, group in zip(documents.texts, documents.groups, strict=True):
        groups[group].append(text)
    return groups


def _stream(texts: Sequence[str], tokenizer: Tokenizer) -> Rows:
    """The tokens (n,) of one group, with the end-of-text token after each of its texts."""
    end = np.array([tokenizer.end], np.int64)
    return np.concatenate([part for text in texts for part in (tokenizer.encode(text), end)])


def _cut(stream: Stream, start: Rows, length: int) -> NDArray[Any]:
    """The blocks (n, length) of one group, each after the tokens that its model starts with."""
    room = length - len(start)
    blocks = stream[: len(stream) // room * room].reshape(-1, room)
    first = np.broadcast_to(start.astype(stream.dtype), (len(blocks), len(start)))
    return np.hstack([first, blocks])


def _merge_streams(
    documents: Documents, streams: Mapping[str, Stream], room: int
) -> dict[str, Stream]:
    """Merge neighbouring parts until most of their tokens fill blocks, or there is only one."""
    total, parts = sum(map(len, streams.values())), dict(streams)
    while documents.anonymous:
        if sum(len(stream) // room for stream in parts.values()) * room >= KEPT_SHARE * total:
            break
        documents, names = documents.merge_parts(), sorted(parts)
        pairs = [names[first : first + 2] for first in range(0, len(names), 2)]
        parts = {
            f"part-{number:03d}": np.concatenate([parts[name] for name in pair])
            for number, pair in enumerate(pairs)
        }
    return parts
