"""A peer's text is made printable, once and for all, and is no formula."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.base.text import LINES, escape_record, escape_text, spreadsheet_cell


@given(st.text())
def test_an_escaped_text_is_printable_and_stays_as_it_is(text):
    safe = escape_text(text)
    assert safe.isprintable()
    assert escape_text(safe) == safe
    if text.isprintable():
        assert safe == text


@pytest.mark.parametrize(
    ("text", "safe"), [("\x1bc", r"\x1bc"), ("a\nb", r"a\nb"), ("\u202eb", r"\u202eb"), ("é", "é")]
)
def test_what_a_terminal_would_obey_is_shown(text, safe):
    assert escape_text(text) == safe


def test_a_text_of_several_lines_keeps_these():
    assert escape_text("a\n\tb\x1b", LINES) == "a\n\tb\\x1b"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_cell_is_no_formula(text):
    assert str(spreadsheet_cell(text)).startswith("'")


@pytest.mark.parametrize("value", [-1.5, 7, None, "site 1"])
def test_numbers_and_names_stay_in_a_cell(value):
    assert spreadsheet_cell(value) == value


def test_a_log_record_is_one_line():
    record = logging.LogRecord("dandelion", 30, "", 0, "site %s is here", ("a\nround 2: b",), None)
    assert escape_record(record)
    assert record.getMessage() == r"site a\nround 2: b is here"
