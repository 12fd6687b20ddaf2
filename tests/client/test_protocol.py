"""Frames between a ClientApp and its worker come back whole, and damaged ones are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.worker.protocol import decode_answer, decode_frame, encode_answer, encode_frame
from shared.base.errors import WireError


@given(
    header=st.dictionaries(st.text(), st.integers() | st.booleans() | st.text()),
    parts=st.lists(st.binary()),
)
def test_a_frame_is_decoded_to_what_was_encoded(header, parts):
    assert decode_frame(encode_frame(header, parts)) == (header, parts)


@given(payload=st.binary(), dense=st.booleans())
def test_an_answer_says_whether_a_gradient_is_in_it(payload, dense):
    assert decode_answer(encode_answer(payload, dense)) == (payload, dense)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        encode_answer(b"reply")[:-1],
        encode_frame({}, [b"reply"]),
        encode_frame({"dense": 1}, [b"reply"]),
        encode_frame({"dense": True}),
        encode_frame({"dense": True}, [b"a", b"b"]),
    ],
    ids=["empty", "cut", "without flag", "number as flag", "without reply", "two replies"],
)
def test_a_damaged_answer_is_refused(data):
    with pytest.raises(WireError):
        decode_answer(data)
