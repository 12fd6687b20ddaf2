"""Questions with choices from tables: the forms of well-known sets, and what is refused."""

import json

import pytest

from shared.base.errors import ConfigError, DataError
from shared.data.columns import Columns
from shared.data.local_folder import documents_in

COLOURS = ("red", "blue", "green")
NAMES = {"choice-columns": "", "answer-column": ""}
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def read(folder, rows, text="", **given):
    """The documents of rows that lie as JSON lines in a folder."""
    folder.mkdir(exist_ok=True)
    lines = "\n".join(map(json.dumps, rows)) + "\n"
    (folder / "rows.jsonl").write_text(lines)
    given = {name.replace("_", "-"): value for name, value in given.items()}
    return documents_in(folder, columns=Columns(text=text, choices={**NAMES, **given}))


@pytest.mark.parametrize(
    "row",
    [
        {"question": "sky?", "choices": COLOURS, "answer": 1},
        {"question": "sky?", "choices": COLOURS, "answer": "B"},
        {"question": "sky?", "choices": COLOURS, "answer": "b"},
        {"question": "sky?", "choices": COLOURS, "answer": "blue"},
        {"question": "sky?", "options": COLOURS, "answer_idx": "1"},
        {"question": "sky?", "choices": {"text": COLOURS, "label": ["1", "2", "3"]},
         "answerKey": "2"},  # ARC
        {"ctx": "sky?", "endings": COLOURS, "label": "1"},  # HellaSwag
        {"question": "sky?", "opa": "red", "opb": "blue", "opc": "green", "opd": "black",
         "cop": 1},  # MedMCQA
        {"question": "sky?", "A": "red", "B": "blue", "answer": "B"},
        {"goal": "sky?", "sol1": "red", "sol2": "blue", "label": 1},  # PIQA
    ],
)  # fmt: skip
def test_the_forms_of_known_sets_are_read(row, tmp_path):
    documents = read(tmp_path / "set", [row] * 3)
    assert list(documents.texts) == ["sky?"] * 3
    assert documents.choices[0][:2] == ("red", "blue")
    assert documents.labels == [1] * 3
    assert documents.classes[:2] == ("A", "B")
    assert documents.take([2]).choices == [documents.choices[2]]


def test_given_columns_go_before_known_ones(tmp_path):
    row = {"question": "no", "what": "sky?", "one": "red", "two": "blue", "right": 0, "answer": 1}
    documents = read(tmp_path, [row] * 2, "what", choice_columns="one, two", answer_column="right")
    assert (documents.texts[0], documents.choices[0]) == ("sky?", ("red", "blue"))
    assert documents.labels == [0, 0]
    with pytest.raises(ConfigError, match=r"choice-columns: .* has columns .*, got 'three'"):
        read(tmp_path, [row], choice_columns="one, three")


def test_a_number_that_is_a_choice_is_its_text(tmp_path):
    row = {"question": "1 + 1?", "choices": ["1", "2", "0"], "answer": "2"}
    assert read(tmp_path, [row]).labels == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 3}, r"row 2 \('sky\?'\): an answer expected .* from 0 to 2; got 3"),
        ({"answer": "black"}, "letter from A to C, or a number from 0 to 2; got 'black'"),
        ({"answer": None}, "got None"),
        ({"choices": ["red"]}, r"2 to 64 choices that are not empty expected, got \['red'\]"),
        ({"choices": ["red", ""]}, "choices that are not empty expected"),
        ({"choices": None}, "a list of choices expected, got None"),
        ({"choices": ["red", None, "blue"]}, "choices that are not empty expected"),
    ],
)
def test_a_wrong_row_is_named(change, message, tmp_path):
    row = {"question": "sky?", "choices": COLOURS, "answer": 1}
    if isinstance(change.get("answer"), str):
        row["answer"] = "B"
    with pytest.raises(DataError, match=message):
        read(tmp_path, [row, {**row, **change}])


@pytest.mark.parametrize("lost", ["question", "choices", "answer"])
def test_a_column_that_is_not_there_is_named(lost, tmp_path):
    row = {"question": "sky?", "choices": COLOURS, "answer": 1, "other": 1}
    del row[lost]
    with pytest.raises(DataError, match=f"a column of {lost.rstrip('s')}s expected, got .*; set"):
        read(tmp_path, [row])
