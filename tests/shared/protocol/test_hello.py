"""An introduction says who a site is, in values that the server can use, or is a WireError."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.errors import WireError
from shared.protocol.messages import Hello, decode_hello, encode_hello

HELLO = Hello("7", 8, 3, "ab" * 16, "cd" * 16, "", 42, "cpu", "float32", 1, True)
texts = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=60)
numbers31 = st.integers(0, (1 << 31) - 1)


@given(st.builds(Hello, texts, numbers31.map(lambda n: max(n, 1)), numbers31, texts, texts,
                 texts, numbers31, texts, texts, numbers31, st.booleans()))  # fmt: skip
@settings(deadline=None)
def test_an_introduction_comes_back_as_it_was_sent(hello):
    assert decode_hello(encode_hello(hello)) == hello


@pytest.mark.parametrize("name", Hello.__dataclass_fields__)
def test_an_introduction_without_a_field_is_refused(name):
    read = asdict(HELLO)
    del read[name]
    with pytest.raises(WireError, match="an introduction expected"):
        decode_hello(json.dumps(read).encode())


@pytest.mark.parametrize("name", Hello.__dataclass_fields__)
def test_an_introduction_with_a_field_of_another_type_is_refused(name):
    for value in (None, 1.5, [], {}, "mistyped", 7, True):
        if type(value) is not type(getattr(HELLO, name)):
            with pytest.raises(WireError, match=f"introduction: {name} is "):
                decode_hello(json.dumps({**asdict(HELLO), name: value}).encode())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slot", 0),  # every site's
        ("slot", -1),
        ("slot", 1 << 31),  # would not fit a key's word beside draws
        ("round", -1),
        ("round", 1 << 40),
        ("examples", -3),
        ("site", ""),
        ("site", "a\nb"),  # would forge a line of the log
        ("site", "\ud800"),  # SQLite takes no lone surrogate
        ("site", "x" * 201),
        ("device", "\x1b[2J"),
    ],
)
def test_an_introduction_out_of_range_is_refused(name, value):
    with pytest.raises(WireError, match=f"introduction: {name} is "):
        decode_hello(json.dumps({**asdict(HELLO), name: value}).encode())


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"[]", b"3", b'"text"', b"null", b"{", b"[" * 4000, b"9" * 4000],
    ids=["empty", "no text", "list", "number", "text", "null", "cut", "deep", "digits"],
)
def test_what_is_no_introduction_is_refused(data):
    with pytest.raises(WireError, match="an introduction expected"):
        decode_hello(data)


def test_a_long_introduction_is_refused_before_it_is_read():
    with pytest.raises(WireError, match="at most 4096 bytes expected: 50000"):
        decode_hello(b"[" * 50_000)


def test_the_example_introduction_is_a_good_one():
    assert decode_hello(encode_hello(HELLO)) == HELLO
    assert decode_hello(encode_hello(replace(HELLO, run="ee" * 16))).run == "ee" * 16
