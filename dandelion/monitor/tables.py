"""Tables whose names and numbers are never cut, and their rows as JSON.

A terminal wraps texts between words. Whatever is no terminal, such as a pipe or a file, gets each
row in one line.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

ROOMY = 100_000  # columns: no table is wider


def print_table(console: Console, table: RenderableType, as_json: bool = False) -> None:
    """Print a table, or a group of tables and lines, or the rows of its tables as JSON."""
    if as_json:
        text = json_text(all_rows(table))
        console.print(text, soft_wrap=True, highlight=False, markup=False)
        return
    for each in table.renderables if isinstance(table, Group) else [table]:
        if isinstance(each, Table):
            _with_width(console, width_of(console, each)).print(each)
        else:
            console.print(each, soft_wrap=True, highlight=False)


def width_of(console: Console, table: Table) -> int:
    """Columns that a table takes: the terminal's, but at least as many as its longest words need.

    Its own columns get their widths here. Without a terminal, no text is wrapped.
    """
    wanted = Measurement.get(console, console.options.update(width=ROOMY), table).maximum
    if not console.is_terminal or wanted <= console.width:
        return wanted
    words = [max((len(w) for text in texts for w in text.split()), default=0)
             for texts in map(_texts, table.columns)]  # fmt: skip
    whole = [max(map(len, texts), default=0) for texts in map(_texts, table.columns)]
    borders = wanted - sum(whole)
    spare = max(0, console.width - borders - sum(words))
    for number in sorted(range(len(words)), key=lambda k: whole[k] - words[k]):
        more = min(whole[number] - words[number], spare)
        table.columns[number].width = words[number] + more
        spare -= more
    return borders + sum(column.width or 0 for column in table.columns)


def _texts(column: Column) -> list[str]:
    """The lines of a column's title and cells."""
    cells = (_plain(cell) for cell in (column.header, *column.cells))
    return [line for cell in cells for line in cell.splitlines()]


def all_rows(table: RenderableType) -> list[dict[str, str | int | float]]:
    """The rows of a table, or of all tables of a group."""
    return [row for each in tables_in(table) for row in rows_of(each)]


def json_text(document: object) -> str:
    """A document as JSON; what is no finite number is null, and what JSON lacks is a text."""
    return json.dumps(_finite(document), indent=1, ensure_ascii=False, allow_nan=False, default=str)


def _finite(document: object) -> object:
    if isinstance(document, Mapping):
        return {key: _finite(value) for key, value in document.items()}
    if isinstance(document, Sequence) and not isinstance(document, str):
        return [_finite(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document


def tables_in(table: RenderableType) -> Iterable[Table]:
    """The tables of a group, or the table itself."""
    parts = table.renderables if isinstance(table, Group) else [table]
    return [each for each in parts if isinstance(each, Table)]


def rows_of(table: Table) -> list[dict[str, str | int | float]]:
    """A mapping from the columns' titles to the cells, of each row; right-hand columns are numbers.

    A table without titles has names in its first column and values in its second.
    """
    titles = [_plain(column.header) or ("name" if k == 0 else "value")
              for k, column in enumerate(table.columns)]  # fmt: skip
    cells = [
        [_number(_plain(cell)) if column.justify == "right" else _plain(cell).strip()
         for cell in column.cells]
        for column in table.columns
    ]  # fmt: skip
    return [dict(zip(titles, row, strict=True)) for row in zip(*cells, strict=True)]


def _plain(cell: RenderableType) -> str:
    return Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)


def _number(text: str) -> str | int | float:
    """The number that a text is; the text itself if it has a unit."""
    for kind in (int, float):
        try:
            return kind(text.replace(",", ""))
        except ValueError:
            continue
    return text


def _with_width(console: Console, width: int) -> Console:
    """The console, if it is as wide as that, or one like it that is."""
    if width <= console.width:
        return console
    return Console(
        file=console.file, width=width, force_terminal=console.is_terminal, soft_wrap=True
    )
