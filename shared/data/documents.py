"""Documents with the natural group of each, and the registry of the data sets that give them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shared.base.errors import ConfigError, DataError
from shared.base.registry import Registry
from shared.packages.package import Package, is_cached

UNLABELLED = -1  # the label of a document that has no class
EXPECTED = 5  # examples of a class among evenly spaced ones; if there is none, they are not fair


@dataclass(frozen=True)
class Documents:
    """Texts in a fixed order: the same on every call and on every machine with the same source."""

    texts: Sequence[str]
    groups: Sequence[str]  # the natural id of each text: its module, play, president
    labels: Sequence[int] | None = None  # the class of each text, or UNLABELLED; None: no classes
    classes: tuple[str, ...] = ()  # the names of labels 0, 1, …
    held_out: Sequence[bool] | None = None  # the data set's own evaluation part
    revision: str = ""  # names the contents, if these are too many to be hashed
    no_labels: str = ""  # why there are no classes, for the error of a task that needs them
    alphabetical: bool = False  # classes are numbered by their names, since the data give no order
    anonymous: bool = False  # groups are parts of consecutive documents, for want of a natural id
    conversations: Sequence[str] | None = None  # the turns of each text, as JSON
    choices: Sequence[tuple[str, ...]] | None = None  # of each question; its label is the right one
    numbers: Sequence[float] | None = None  # of each text, NaN: it has none
    no_conversations: str = ""  # why there are none, for the error of a task that needs them

    def __post_init__(self) -> None:
        columns = [
            column
            for column in (self.groups, self.labels, self.held_out, *self._more)
            if column is not None
        ]
        if any(len(column) != len(self.texts) for column in columns):
            sizes = len(self.texts), *map(len, columns)
            raise DataError(f"as many groups and labels as texts expected, got {sizes}")

    @property
    def _more(self) -> tuple[Sequence[object] | None, ...]:
        return self.conversations, self.choices, self.numbers

    def take(self, rows: Sequence[int]) -> "Documents":
        """Return some of the documents."""
        flags = self.held_out
        turns, choices, numbers = (
            None if column is None else [column[row] for row in rows] for column in self._more
        )
        more: dict[str, Any] = {"conversations": turns, "choices": choices, "numbers": numbers}
        return replace(
            self,
            texts=pick_texts(self.texts, rows),
            groups=[self.groups[row] for row in rows],
            labels=None if self.labels is None else [self.labels[row] for row in rows],
            held_out=None if flags is None else [flags[row] for row in rows],
            revision=f"{self.revision}, rows {_hash(rows)}" if self.revision else "",
            **more,
        )

    def share(self, part: str) -> "Documents":
        """Select whole groups: ``k/n`` takes the k-th of every n groups sorted by name.

        Empty: all. The n shares are disjoint and together complete.

        Raises:
            ConfigError: ``part`` has another form, or there are fewer than n groups.
        """
        number, count = share_of(part)
        names = sorted(set(self.groups))
        if len(names) < count:
            raise ConfigError(f"data-part = {part}: {len(names)} groups are no {count} parts")
        chosen = set(names[number - 1 :: count])
        if len(chosen) == len(names):
            return self
        return self.take([row for row, group in enumerate(self.groups) if group in chosen])

    def thin(self, most: int) -> "Documents":
        """Keep ``most`` documents, evenly spaced over the order; all of them if ``most`` is 0.

        An evaluation part of the data set's own keeps its proportion.
        """
        total = len(self.texts)
        if not 0 < most < total:
            return self
        apart = np.flatnonzero(self.held_out if self.held_out is not None else np.zeros(total))
        few = min(most, max(round(most * len(apart) / total), 1)) if len(apart) else 0
        rest = np.setdiff1d(np.arange(total), apart)
        few = max(few, most - len(rest))
        labels = None if self.labels is None else np.asarray(self.labels)
        rows = [
            part[space_fairly(None if labels is None else labels[part], len(part), count)]
            for part, count in ((apart, few), (rest, most - few))
        ]
        return self.take(np.sort(np.concatenate(rows)).tolist())

    def merge_parts(self) -> "Documents":
        """Join the anonymous groups in pairs: half as many, each of twice as many documents."""
        number = {name: index // 2 for index, name in enumerate(sorted(set(self.groups)))}
        groups = [f"part-{number[group]:03d}" for group in self.groups]
        return replace(self, groups=groups, anonymous=max(number.values()) > 0)

    def parts(self) -> tuple["Documents", "Documents"] | None:
        """The data set's own training and evaluation parts; None if it has no such parts."""
        if self.held_out is None or not any(self.held_out) or all(self.held_out):
            return None
        apart = np.asarray(self.held_out, bool)
        return self.take(np.flatnonzero(~apart).tolist()), self.take(np.flatnonzero(apart).tolist())


@dataclass(frozen=True)
class Source:
    """A data set: its description, and the function that loads its documents."""

    load: Callable[[int, str], Documents]  # (max_samples, natural id) -> documents
    kind: str  # embedded, packaged, hub, local
    about: str
    ids: tuple[str, ...]  # natural ids to group documents by; the first is the default
    size: str  # in words
    licence: str
    samples: int = 0  # documents that are taken if max-samples is 0; 0: all
    carrier: Package | None = None
    hub: str = ""
    any_id: bool = False  # any of its columns is a natural id, known when it is read
    here: Callable[[], bool] = lambda: True

    @property
    def is_here(self) -> bool:
        """Whether it can be had without a network."""
        return self.here() if self.carrier is None else is_cached(self.carrier)

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        if self.carrier is None:
            return f"huggingface.co/datasets/{self.hub}" if self.hub else "this machine"
        package = self.carrier
        return f"{package.name} {package.version} of {package.index}, sha256 {package.sha256}"


def share_of(part: str) -> tuple[int, int]:
    """Read ``k/n`` with 1 <= k <= n; empty is 1/1.

    Raises:
        ConfigError: ``part`` has another form.
    """
    number, slash, count = (part or "1/1").partition("/")
    if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise ConfigError(f"data-part: k/n with k from 1 to n expected, such as 1/2, got {part!r}")


def pick_texts(texts: Sequence[str], rows: Sequence[int]) -> list[str]:
    """Some of the texts; a column on disk is read once for all of them."""
    if isinstance(texts, list):
        return [texts[row] for row in rows]
    column: Any = texts
    return list(column[list(rows)])


def space_evenly(total: int, count: int) -> NDArray[np.int64]:
    """Return ``count`` of the rows 0 .. total - 1, evenly spaced; distinct if count <= total."""
    return (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * count)


def space_fairly(labels: NDArray[np.int64] | None, total: int, count: int) -> NDArray[np.int64]:
    """Return ``count`` of the rows 0 .. total - 1, evenly spaced, of all classes.

    Classes that come in a fixed turn can make equal steps miss one. If a class of which EXPECTED
    rows would be fair gets none, the rows are evenly spaced over the rows sorted by class.
    """
    rows = space_evenly(total, count)
    if labels is None or not has_lost_a_class(labels, rows):
        return rows
    return np.sort(np.argsort(labels, kind="stable")[rows])


def has_lost_a_class(labels: NDArray[np.int64], rows: NDArray[np.int64]) -> bool:
    """Whether some rows lack a class of which at least EXPECTED of them should be."""
    classes, sizes = np.unique(labels, return_counts=True)
    expected = classes[sizes * len(rows) >= EXPECTED * len(labels)]
    return not np.isin(expected, labels[rows]).all()


def _hash(rows: Sequence[int]) -> str:
    """A hash of row numbers."""
    return xxhash.xxh3_64(np.asarray(rows, "<i8").tobytes()).hexdigest()


DATASETS: Registry[Source] = Registry("dataset", "shared.data.sets")
