"""The columns of a table: which are text, class and natural id, and what stands in their cells."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shared.base.errors import ConfigError, DataError
from shared.data.class_column import Labels, classes_of
from shared.data.conversations import SPEECH, conversations_of, plain_text, speech_columns
from shared.data.documents import Documents
from shared.data.tables.choices import ChoiceColumns, choice_names, read_choices
from shared.data.tables.numbers import number_column, read_numbers

LOG = logging.getLogger("dandelion")
TEXTS = (("text",), ("question", "long_answer", "final_decision"), ("sentence",), ("content",))
HELD_OUT = "held_out"
OWN_COLUMNS = ("group", "label", HELD_OUT)
MOST_GROUPS = 256  # of consecutive documents, if no column names their groups
MARKS = (";", "\t", "|")  # that part the cells of tables which are no comma-separated ones
WORDS = ("string", "large_string", "string_view")


@dataclass(frozen=True)
class Columns:
    """The names of a folder's columns that a run gives; empty: one of the names that are known."""

    text: str = ""  # several with commas: joined by line ends
    label: str = ""
    prompt: str = ""  # as text
    response: str = ""
    converse: bool = False  # documents are conversations, and no text is looked for
    choices: Mapping[str, str] | None = None  # of questions, by their settings; None: not wanted
    number: str | None = None  # the column of numbers; None: not wanted

    def revision_of(self, dataset: Any) -> str:  # noqa: ANN401
        """A name for the contents of a ``Dataset`` as these columns read it.

        Examples are kept by this name: those of another column of the same file are others.
        """
        given = {key: value for key, value in vars(self).items() if value}
        return f"{dataset._fingerprint} {given}" if given else f"{dataset._fingerprint}"


def documents_from(dataset: Any, by: str, name: str, columns: Columns | None = None) -> Documents:  # noqa: ANN401
    """Make documents of a ``Dataset``, grouped by the column ``by``.

    Rows without a text are left out, and counted in the log.

    Raises:
        ConfigError: there is no such column.
        DataError: no column of text is known, or one holds something else; classes are missing or
            odd.
    """
    columns, parts = _with_question(columns or Columns(), dataset.column_names, name)
    if columns.converse:
        dataset, turns = _with_conversations(dataset, name, columns)
        wanted: tuple[str, ...] = ()
    else:
        wanted, turns = text_columns(dataset.column_names, name, columns.text), None
        _check_text(dataset, wanted, name)
        dataset = _rows_with_text(dataset, wanted, name)
    total, names = len(dataset), dataset.column_names
    if by in names:
        groups = [str(value) for value in _cells(dataset, by, name, "the group 'None'")]
    elif by == "group":
        count = min(MOST_GROUPS, total)
        groups = [f"part-{row * count // total:03d}" for row in range(total)]
    else:
        raise ConfigError(f"partition-by: {name} has columns {', '.join(names)}, got {by!r}")
    classless = columns.converse or columns.number is not None or parts is not None
    labels = Labels() if classless else classes_of(dataset, name, columns.label)
    documents = Documents(
        _texts_of(dataset, wanted) if turns is None else [plain_text(text) for text in turns],
        groups,
        labels.values,
        labels.classes,
        _flags(dataset, name),
        columns.revision_of(dataset),
        labels.reason,
        labels.alphabetical,
        by not in names,
        turns,
        no_conversations=f"{name} has columns {', '.join(names)}",
    )
    if parts is not None:
        choices, answers = read_choices(dataset, parts, name)
        names = choice_names(max(map(len, choices)))
        return replace(documents, choices=choices, labels=answers, classes=names)
    if columns.number is not None:
        column = number_column(names, name, columns.number)
        return replace(documents, numbers=read_numbers(dataset, column, name))
    return documents


def _with_question(
    columns: Columns, names: Sequence[str], table: str
) -> tuple[Columns, ChoiceColumns | None]:
    """If questions with choices are wanted: their columns, the question's as that of the text."""
    if columns.choices is None:
        return columns, None
    parts = ChoiceColumns.of(names, table, {"text-column": columns.text, **columns.choices})
    return replace(columns, text=parts.question), parts


def _with_conversations(dataset: Any, name: str, columns: Columns) -> tuple[Any, list[str]]:  # noqa: ANN401
    """The rows that hold a conversation, and these as JSON.

    Raises:
        ConfigError, DataError: as ``speech_columns`` and ``conversations_of``.
    """
    chosen = speech_columns(dataset.column_names, name, columns.prompt, columns.response)
    turns = conversations_of(dataset, chosen, name)
    if not all(turns):
        dataset = dataset.select([row for row, text in enumerate(turns) if text])
    return dataset, [text for text in turns if text]


def _texts_of(dataset: Any, wanted: Sequence[str]) -> Sequence[str]:  # noqa: ANN401
    if len(wanted) > 1:
        return join_columns(dataset, wanted)
    column: Sequence[str] = dataset[wanted[0]]
    return column


def text_columns(columns: Sequence[str], name: str, given: str = "") -> tuple[str, ...]:
    """The columns that make up a document: those given, or by the names that are known.

    Raises:
        ConfigError: a given one is not there.
        DataError: none of the known sets of columns is there.
    """
    chosen = tuple(column.strip() for column in given.split(",") if column.strip())
    if missing := [column for column in chosen if column not in columns]:
        raise ConfigError(
            f"text-column: {name} has columns {', '.join(columns)}, got {missing[0]!r}"
        )
    for wanted in (chosen,) if chosen else TEXTS:
        if set(wanted) <= set(columns):
            return wanted
    known = "; ".join(" + ".join(wanted) for wanted in TEXTS)
    remedy = "set text-column" + ", or task to instruction" * bool(SPEECH & set(columns))
    if mark := next((mark for mark in MARKS if any(mark in column for column in columns)), ""):
        remedy = f"cells are parted by {mark!r}: save the table with commas, or as .tsv"
    raise DataError(
        f"{name}: columns of text expected ({known}), got {', '.join(columns)}; {remedy}"
    )


def join_columns(rows: Any, columns: Sequence[str]) -> list[str]:  # noqa: ANN401
    """One text per row: its columns, one under the other; empty cells are left out."""
    return [join_cells(parts) or "" for parts in zip(*(rows[c] for c in columns), strict=True)]


def join_cells(cells: Sequence[object]) -> str | None:
    """The cells of one document, one under the other, without those that are None; None if all."""
    texts = [str(cell) for cell in cells if cell is not None]
    return "\n".join(texts) if texts else None


def _check_text(dataset: Any, columns: Sequence[str], name: str) -> None:  # noqa: ANN401
    """Refuse a column of texts that holds something else.

    Raises:
        DataError: names the column and its type.
    """
    for column in columns:
        feature = dataset.features[column]
        dtype = getattr(feature, "dtype", "") if type(feature).__name__ == "Value" else ""
        if dtype in WORDS or (dtype and len(columns) > 1):
            continue
        raise DataError(
            f"{name}: texts expected in column {column!r}, got {dtype or feature}: a row for each "
            "document expected, with its text in that column; or set text-column to another one"
        )


def _rows_with_text(dataset: Any, columns: Sequence[str], name: str) -> Any:  # noqa: ANN401
    """The rows in which at least one of the columns is not empty.

    Raises:
        DataError: there is none.
    """
    if all(dataset.data.column(column).null_count for column in columns):
        empty = np.all([[cell is None for cell in dataset[c]] for c in columns], axis=0)
        if empty.all():
            raise DataError(f"{name}: texts expected in {', '.join(columns)}, all rows are empty")
        if empty.any():
            LOG.warning(
                "%s: %d of %d rows have no text in %s and are left out, the first is row %d",
                name, empty.sum(), len(empty), " + ".join(columns), int(empty.argmax()) + 1,
            )  # fmt: skip
            dataset = dataset.select(np.flatnonzero(~empty))
    if not len(dataset):
        raise DataError(f"{name}: rows expected, got none")
    return dataset


def _cells(dataset: Any, column: str, name: str, instead: str) -> list[object]:  # noqa: ANN401
    """The cells of a column; logs how many are empty, and what stands for them."""
    cells = list(dataset[column])
    if missing := [row for row, cell in enumerate(cells) if cell is None]:
        LOG.warning(
            "%s: column %r is empty in %d of %d rows, which are %s; the first is row %d", name,
            column, len(missing), len(cells), instead, missing[0] + 1,
        )  # fmt: skip
    return cells


def _flags(dataset: Any, name: str) -> list[bool] | None:  # noqa: ANN401
    """Which rows the data set itself holds out; None if it does not say.

    Raises:
        DataError: a cell is neither true nor false.
    """
    if HELD_OUT not in dataset.column_names:
        return None
    cells = list(dataset[HELD_OUT])
    if odd := [row for row, cell in enumerate(cells) if cell not in (True, False, None)]:
        raise DataError(
            f"{name}: true or false expected in column {HELD_OUT!r}, got {cells[odd[0]]!r} in row "
            f"{odd[0] + 1}"
        )
    return [bool(cell) for cell in cells]
