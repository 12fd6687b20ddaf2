"""Prompts and responses from the files and columns in which people have them."""

import csv
import json

import pytest

from shared.base.errors import ConfigError, DataError
from shared.data.columns import Columns
from shared.data.conversations import exchange, plain_text, to_json, turns_of
from shared.data.documents import Documents
from shared.data.local_folder import documents_in
from shared.data.sets.python_docs import python_docs

pytestmark = [  # the library's reader of csv leaves a file open
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ALPACA = [
    {"instruction": "add", "input": "1 and 2", "output": "3"},
    {"instruction": "say hello", "input": "", "output": "hello"},
]
TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "bye"},
]
SHARE_GPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes?"}]
CONVERSE = Columns(converse=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))


def write(folder, rows, kind="jsonl"):
    """A folder with one table of the rows."""
    from datasets import Dataset

    folder.mkdir(exist_ok=True)
    file = folder / f"rows.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        Dataset.from_list(rows).to_parquet(file)
    else:
        with file.open("w", newline="") as text:
            table = csv.DictWriter(text, rows[0])
            table.writeheader()
            table.writerows(rows)
    return folder


def conversations(folder, **columns):
    documents = documents_in(folder, "group", Columns(**columns, converse=True))
    return [turns_of(text) for text in documents.conversations]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_instruction_input_and_output_are_known_in_every_kind_of_file(tmp_path, kind):
    first, second = conversations(write(tmp_path / "data", ALPACA, kind))
    assert first == exchange("add\n1 and 2", "3")
    assert second == exchange("say hello", "hello")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "response": "yes?"},
        {"question": "hi", "answer": "yes?"},
        {"messages": TURNS[1:3]},
        {"messages": json.dumps(TURNS[1:])},
        {"conversations": SHARE_GPT},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, TURNS[2]]},
        {"question": "hi", "answer": ["yes?", "no"]},
    ],
)
def test_forms_that_people_have_are_one_conversation(tmp_path, row):
    (turns,) = conversations(write(tmp_path / "data", [row]))
    assert turns == exchange("hi", "yes?")


def said(first, second):
    return [{"role": first, "content": "hi"}, {"role": second, "content": "x"}]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"question": 0, "answer": 1}], [exchange("0", "1")]),
        ([{"question": "hi", "answer": 1.5}, {"question": "ho", "answer": None}], [("hi", "1.5")]),
        ([{"messages": said(" User", "ASSISTANT")}], [("hi", "x")]),
        ([{"messages": said("user", "model")}], [("hi", "x")]),
        ([{"messages": []}, {"messages": TURNS[1:3]}], [("hi", "yes?")]),
        ([{"prompt": "hi", "response": "x"}] * 2, [("hi", "x")] * 2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_odd_cells_are_read_as_meant(tmp_path, kind, rows, expected):
    """Numbers, also 0 and a missing one; roles in other words; an empty list; a row twice."""
    pairs = [pair if isinstance(pair, list) else exchange(*pair) for pair in expected]
    assert list(conversations(write(tmp_path / "data", rows, kind))) == pairs


def test_what_is_no_number_is_an_empty_cell(tmp_path):
    rows = [{"question": "hi", "answer": 1.5}, {"question": "ho", "answer": float("nan")}]
    (turns,) = conversations(write(tmp_path / "data", rows, "parquet"))
    assert turns == exchange("hi", "1.5")


def test_turns_after_the_last_response_are_dropped_and_those_before_stay(tmp_path):
    (turns,) = conversations(write(tmp_path / "data", [{"messages": TURNS}]))
    assert turns == TURNS[:3]


def test_columns_can_be_given(tmp_path):
    folder = write(tmp_path / "data", [{"a": "one", "b": "two", "c": "three", "output": "no"}])
    (turns,) = conversations(folder, prompt="a, b", response="c")
    assert turns == exchange("one\ntwo", "three")
    for given in ({"prompt": "d"}, {"prompt": "a", "response": "d"}):
        with pytest.raises(ConfigError, match=r"column: .* has columns a, .*, got 'd'"):
            conversations(folder, **given)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "hi", "text": "yes"}, "a column of responses .* set response-column"),
        ({"text": "hi", "output": "yes"}, "a column of prompts .* set prompt-column"),
        ({"prompt": "hi", "response": " "}, "a response in 'response' expected, none of 1 rows"),
        ({"messages": TURNS[:2]}, "messages with a turn of the assistant after another expected"),
        ({"messages": [{"speaker": "x"}]}, "row 1: messages with role and content"),
        ({"messages": "plain"}, "row 1: messages as JSON expected, got 'plain'"),
        ({"prompt": "hi", "response": {"a": 1}}, "row 1: a text expected, got dict"),
    ],
)
def test_what_is_no_conversation_is_refused_by_name(tmp_path, row, what):
    with pytest.raises(DataError, match=what):
        conversations(write(tmp_path / "data", [row]))


def test_rows_without_a_response_are_counted_and_left_out(tmp_path, caplog):
    rows = [*ALPACA, {"instruction": "x", "input": "", "output": None}]
    assert len(conversations(write(tmp_path / "data", rows))) == 2
    assert "1 of 3 rows have no prompt or no response and are left out, the first is row 3" in (
        caplog.text
    )


def test_natural_ids_and_flags_of_held_out_rows_are_kept(tmp_path):
    rows = [{**row, "who": f"author {n}", "held_out": bool(n)} for n, row in enumerate(ALPACA)]
    documents = documents_in(write(tmp_path / "data", rows), "who", CONVERSE)
    assert list(documents.groups) == ["author 0", "author 1"]
    training, held_out = documents.parts()
    assert len(training.conversations) == len(held_out.conversations) == 1
    assert held_out.texts == [plain_text(held_out.conversations[0])]


def test_texts_are_the_plain_form():
    assert plain_text(to_json(TURNS[:3])) == "System: be brief\nUser: hi\nAssistant: yes?"
    assert plain_text("") == ""


def test_taking_documents_takes_their_conversations():
    documents = Documents(["a", "b"], ["x", "y"], conversations=["1", "2"])
    assert documents.take([1]).conversations == ["2"]
    with pytest.raises(DataError, match="as many"):
        Documents(["a"], ["x"], conversations=[])


def test_python_answers_questions_about_its_own_library():
    first, second = python_docs(0), python_docs(0)
    assert first.conversations == second.conversations
    assert len(first.texts) > 500
    assert len(set(first.groups)) > 40
    answers = dict(zip(first.texts, first.groups, strict=True))
    question = "User: What does math.gcd do?\nAssistant: Greatest Common Divisor."
    assert answers[question] == "math"
    assert len(python_docs(50).texts) == 50


def test_a_table_of_conversations_that_is_read_as_texts_names_the_task(tmp_path):
    folder = write(tmp_path / "data", [{"messages": TURNS}])
    with pytest.raises(DataError, match="got messages; set text-column, or task to instruction"):
        documents_in(folder, "group", Columns())
