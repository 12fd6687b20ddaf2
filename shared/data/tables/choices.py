"""Questions with choices in the columns of a table: the choices of each row, and which is right.

Choices are one column of lists, or of what ARC's files hold (``{"text": […], "label": […]}``), or
a column for each. The right one is a number from 0, a letter, a choice's own label, or its text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.base.errors import ConfigError, DataError

QUESTIONS = ("question", "query", "ctx", "premise", "goal", "prompt", "sentence", "text")
CHOICES = (
    *(("choices",), ("options",), ("endings",), ("answers",)),
    *(("A", "B", "C", "D", "E"), ("A", "B", "C", "D"), ("A", "B", "C"), ("A", "B")),
    *(("opa", "opb", "opc", "opd"), ("sol1", "sol2"), ("option1", "option2")),
    ("choice1", "choice2"),
)
ANSWERS = ("answer", "label", "answerKey", "answer_index", "answer_idx", "correct", "gold", "cop")
MOST_CHOICES, LETTERS = 64, 26


@dataclass(frozen=True)
class ChoiceColumns:
    """The columns of a table that questions with choices are read from."""

    question: str
    choices: tuple[str, ...]  # one column of lists, or a column for each choice
    answer: str

    @classmethod
    def of(cls, names: Sequence[str], table: str, given: Mapping[str, str]) -> "ChoiceColumns":
        """Those that are given, or else known by their names.

        Args:
            names: of the table's columns.
            table: its name, for messages.
            given: column names by the settings text-column, choice-columns and answer-column;
                empty: known names.

        Raises:
            ConfigError: a given column is not there.
            DataError: none of the known names is there.
        """
        for setting, text in given.items():
            if missing := [name for name in _split(text) if name not in names]:
                listed = ", ".join(names)
                raise ConfigError(f"{setting}: {table} has columns {listed}, got {missing[0]!r}")
        choices = _split(given["choice-columns"]) or next(
            (known for known in CHOICES if set(known) <= set(names)), ()
        )
        question = given["text-column"] or next((c for c in QUESTIONS if c in names), "")
        answer = given["answer-column"] or next((c for c in ANSWERS if c in names), "")
        for what, setting, column in (
            ("questions", "text-column", question),
            ("choices", "choice-columns", "".join(choices)),
            ("answers", "answer-column", answer),
        ):
            if not column:
                raise DataError(
                    f"{table}: a column of {what} expected, got {', '.join(names)}; set {setting}"
                )
        return cls(question, choices, answer)


def read_choices(
    rows: Any,  # noqa: ANN401
    columns: ChoiceColumns,
    table: str,
) -> tuple[list[tuple[str, ...]], list[int]]:
    """The choices of each row of a ``Dataset``, and the number of the right one.

    Raises:
        DataError: a row has fewer than two choices, or an answer that is none of them; names it.
    """
    parts = [rows[name] for name in columns.choices]
    choices, answers = [], []
    cells = zip(rows[columns.question], rows[columns.answer], *parts, strict=True)
    for number, (question, answer, *own) in enumerate(cells, 1):
        place = f"{table}, row {number} ({str(question)[:40]!r})"
        texts, labels = _choices_of(own, place)
        choices.append(texts)
        answers.append(_answer_of(answer, texts, labels, place))
    return choices, answers


def choice_names(count: int) -> tuple[str, ...]:
    """Names of so many choices: letters, and numbers after Z."""
    return tuple(chr(ord("A") + n) if n < LETTERS else str(n) for n in range(count))


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _choices_of(cells: Sequence[Any], place: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of a row's choices, and their own labels if it has such."""
    labels: Sequence[Any] = ()
    if len(cells) == 1:
        cells = cells[0]
    if isinstance(cells, Mapping):
        labels, cells = cells.get("label") or (), cells.get("text") or ()
    if isinstance(cells, str) or not isinstance(cells, Sequence):
        raise DataError(
            f"{place}: a list of choices expected, got {cells!r:.60}; several columns are named "
            "with commas in choice-columns"
        )
    there = [at for at, cell in enumerate(cells, 1) if cell is not None]
    texts = tuple(
        "" if cell is None else str(cell).strip() for cell in cells[: max(there, default=0)]
    )
    if not 2 <= len(texts) <= MOST_CHOICES or not all(texts):
        raise DataError(
            f"{place}: 2 to {MOST_CHOICES} choices that are not empty expected, got "
            f"{[*texts]!r:.80}"
        )
    return texts, tuple(map(str, labels))


def _answer_of(cell: Any, texts: Sequence[str], labels: Sequence[str], place: str) -> int:  # noqa: ANN401
    """The number of the right choice: by text, by a choice's own label, by letter, by number."""
    is_whole = isinstance(cell, float) and cell.is_integer()
    answer = str(int(cell) if is_whole else cell).strip()
    letters = choice_names(len(texts))
    numbers = [str(number) for number in range(len(texts))]
    is_text = isinstance(cell, str)
    for names in (texts, labels, letters, numbers) if is_text else (labels, numbers):
        if [*names].count(answer) == 1:
            return [*names].index(answer)
    if is_text and answer.upper() in letters:
        return letters.index(answer.upper())
    raise DataError(
        f"{place}: an answer expected that is the text of a choice, a letter from A to "
        f"{letters[-1]}, or a number from 0 to {len(texts) - 1}; got {cell!r:.60}"
    )
