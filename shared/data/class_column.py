"""The column of a table that says the class of each row, by a number or by a word."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from shared.base.errors import ConfigError
from shared.data.documents import UNLABELLED

LOG = logging.getLogger("dandelion")
LABELS = ("label", "final_decision")
MOST_CLASSES = 1 << 12  # a larger number is an id or a measurement


@dataclass(frozen=True)
class Labels:
    """The classes of rows: their numbers, their names, and where the numbers come from."""

    values: list[int] | None = None
    classes: tuple[str, ...] = ()
    alphabetical: bool = False
    reason: str = ""  # why there are none


def classes_of(dataset: Any, name: str, given: str = "") -> Labels:  # noqa: ANN401
    """The classes of the rows.

    Names that the data set itself numbers keep their numbers, and so do numbers. Words are
    numbered in the order of the alphabet. An empty cell or -1 means that a row has no class.

    Raises:
        ConfigError: the given column is not there.
    """
    names = dataset.column_names
    if given and given not in names:
        raise ConfigError(f"label-column: {name} has columns {', '.join(names)}, got {given!r}")
    column = given or next((c for c in LABELS if c in names), "")
    if not column:
        listed = ", ".join(names)
        return Labels(reason=f"{name} has columns {listed}; set label-column to the classes'")
    values = [_class_of(value) for value in dataset[column]]
    known = [value for value in values if value is not None]
    labels = _number(known, values, getattr(dataset.features[column], "names", None))
    if labels.reason:
        return Labels(reason=f"column {column!r} of {name} {labels.reason}")
    if missing := [row for row, value in enumerate(values) if value is None]:
        LOG.warning(
            "%s: column %r has no class in %d of %d rows, the first is row %d", name, column,
            len(missing), len(values), missing[0] + 1,
        )  # fmt: skip
    return labels


def _class_of(value: object) -> object:
    """A cell as a class: a whole number as an integer, and None for what means that there is none.

    A column of integers with an empty cell comes as floats.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    missing = value in (None, "", UNLABELLED, str(UNLABELLED)) or (
        isinstance(value, float) and isnan(value)
    )
    return None if missing else value


def _number(known: list[object], values: list[object], named: Sequence[str] | None) -> Labels:
    """Number the classes of rows; ``named``: the names that the data set gives its numbers."""
    if not known:
        return Labels(reason="has no class in any row")
    if all(isinstance(value, str) for value in known):
        names = tuple(sorted(map(str, set(known))))
        numbers = {name: number for number, name in enumerate(names)}
        labels = [numbers.get(str(value), UNLABELLED) for value in values]
        return Labels(labels, names, alphabetical=True)
    whole = [int(value) for value in known if isinstance(value, int)]
    if len(whole) < len(known):
        odd = next(value for value in known if not isinstance(value, int))
        return Labels(reason=f"holds {odd!r:.40}: words, or whole numbers from 0, expected")
    low, high = min(whole), max(whole)
    if not 0 <= low <= high < MOST_CLASSES:
        return Labels(reason=f"holds {low} to {high}: 0 to {MOST_CLASSES - 1} expected")
    labels = [int(value) if isinstance(value, int) else UNLABELLED for value in values]
    return Labels(labels, tuple(named or map(str, range(high + 1))))
