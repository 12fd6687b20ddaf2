"""HTML of our pages: what is no markup is text, whatever it says."""

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.pages.html import Html, element, markup, page, part, prose, table

HOSTILE = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=1>",
    '"><b>',
    "'&amp;",
    "a\x1b[2Jb",
]


class Outline(HTMLParser):
    """Opened and closed elements, and the text between them."""

    def __init__(self):
        super().__init__()
        self.opened, self.texts, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.opened.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


def outline(text):
    parser = Outline()
    parser.feed(text)
    return parser


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_is_text_in_cells_attributes_captions_and_titles(text):
    parts = [
        table(text, [text], [[text]]), element("p", text, title=text), prose(text),
        part(text, text).html,
    ]  # fmt: skip
    whole = outline(page(text, Html("".join(parts))))
    assert not {"script", "img", "b"} & set(whole.opened)
    assert {name for name, _ in whole.attributes} <= {
        "lang", "charset", "name", "content", "http-equiv", "rel", "href", "class", "tabindex",
        "role", "aria-label", "scope", "title", "id", "aria-labelledby",
    }  # fmt: skip
    shown = text.replace("\x1b", r"\x1b")
    assert "".join(whole.texts).count(shown) >= 6


@settings(max_examples=50)
@given(st.text())
def test_any_text_comes_back_as_it_was_shown(text):
    (shown,) = outline(f"<p>{markup('x' + text)}</p>").texts
    assert shown.isprintable()
    if text.isprintable():
        assert shown == "x" + text


def test_markup_is_not_escaped_twice():
    assert element("p", element("b", "<")) == "<p><b>&lt;</b></p>"
    assert element("i", class_="x", aria_label="a") == '<i class="x" aria-label="a"></i>'


def test_a_table_can_be_reached_by_the_keyboard_and_names_its_cells():
    text = table("Sites", ["site", "rounds"], [("a", "3")], "rounds")
    assert 'tabindex="0"' in text
    assert '<th scope="row">a</th><td class="number">3</td>' in text
    assert "<caption>Sites</caption>" in text
