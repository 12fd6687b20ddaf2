"""A number for each row of a table, and what it is standardised by."""

import math
from collections.abc import Sequence
from typing import Any

from shared.base.errors import ConfigError, DataError

TARGETS = ("target", "score", "value", "rating", "label")


def number_column(names: Sequence[str], table: str, given: str) -> str:
    """The column of numbers: the given one, or one of a known name.

    Raises:
        ConfigError: the given one is not there.
        DataError: none of the known names is there.
    """
    if given and given not in names:
        raise ConfigError(f"target-column: {table} has columns {', '.join(names)}, got {given!r}")
    if column := given or next((name for name in TARGETS if name in names), ""):
        return column
    raise DataError(
        f"{table}: a column of numbers expected ({', '.join(TARGETS)}), got {', '.join(names)}; "
        "set target-column"
    )


def read_numbers(rows: Any, column: str, table: str) -> list[float]:  # noqa: ANN401
    """The number of each row of a ``Dataset``; NaN if its cell is empty.

    Raises:
        DataError: a cell is no finite number, or all are empty; names the row.
    """
    numbers = []
    for row, cell in enumerate(rows[column], 1):
        try:
            number = math.nan if cell is None or cell == "" else float(cell)
        except (TypeError, ValueError):
            number = math.inf
        if math.isinf(number):
            raise DataError(
                f"{table}, row {row}: a number expected in column {column!r}, got {cell!r:.60}"
            )
        numbers.append(number)
    if all(map(math.isnan, numbers)):
        raise DataError(f"{table}: numbers expected in column {column!r}, all cells are empty")
    return numbers
