"""Messages of sealed sums: they come back as they were, and damaged ones are refused."""

import dataclasses

import numpy as np
import pytest

from shared.base.errors import WireError
from shared.protocol.flower_records import pack, rider_of, unpack
from shared.protocol.frames import close_frame
from shared.protocol.messages import Request, decode_reply, decode_request, encode_request
from shared.protocol.sealed_messages import (
    CohortSite,
    Sealed,
    SumReply,
    SumRequest,
    cohort_digest,
    decode_sealed,
    decode_sum_answer,
    decode_sum_reply,
    decode_sum_request,
    encode_sealed,
    encode_sum_refusal,
    encode_sum_reply,
    encode_sum_request,
    is_sum_request,
)

BOXES = {3: b"a" * 32, 9: b"b" * 32, 2**31 - 1: b"c" * 32}
REPLY = Sealed(7, 1, 2, 2, b"d" * 16, b"o" * 16, b"q" * 32, BOXES)
SITES = [CohortSite(slot, slot % 2, bytes([slot]) * 32) for slot in (2, 3, 5)]
REQUEST = SumRequest(
    7, 1, 2, 2, b"d" * 16, b"r" * 16, b"c" * 16, SITES, [bytes([k]) * 32 for k in range(3)]
)
SUMS = SumReply(7, 1, b"h" * 32, np.array([[1, 2], [3, 2**61 - 2]], np.uint64))


def test_boxes_come_back():
    data = encode_sealed(REPLY)
    assert len(data) == 88 + 3 * (20 + 8 * 2)
    assert decode_reply(data) == decode_sealed(data) == REPLY


def test_a_request_for_sums_comes_back_and_is_told_from_one_for_numbers():
    data = encode_sum_request(REQUEST)
    assert len(data) == 72 + 3 * (56 + 8 * 2)
    assert decode_sum_request(data) == REQUEST
    assert is_sum_request(data)
    assert not is_sum_request(encode_request(Request(1, 0.1, b"d" * 16, b"r" * 16, b"c" * 16)))


def test_sums_come_back():
    data = encode_sum_reply(SUMS)
    assert len(data) == 52 + 8 * 2 * 2
    back = decode_sum_reply(data)
    assert (back.round, back.attempt, back.cohort) == (7, 1, b"h" * 32)
    assert back.sums.tolist() == SUMS.sums.tolist()


@pytest.mark.parametrize(
    ("data", "decode"),
    [
        (encode_sealed(REPLY), decode_sealed),
        (encode_sum_request(REQUEST), decode_sum_request),
        (encode_sum_reply(SUMS), decode_sum_reply),
    ],
    ids=["sealed", "request", "sums"],
)
def test_damaged_bytes_are_refused(data, decode):
    for size in range(len(data)):
        with pytest.raises(WireError):
            decode(data[:size])
        if size != len(data) - 4:  # all before the checksum
            with pytest.raises(WireError):
                decode(close_frame(data[:size]))
    with pytest.raises(WireError, match="checksum"):
        decode(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    with pytest.raises(WireError):
        decode(data + b"more")


@pytest.mark.parametrize(
    "change", [{"needed": 4}, {"needed": 0}, {"boxes": dict(reversed(BOXES.items()))}], ids=str
)
def test_a_committee_that_cannot_be_is_refused(change):
    with pytest.raises(WireError, match="distinct members in order"):
        decode_sealed(encode_sealed(dataclasses.replace(REPLY, **change)))


def test_an_answer_is_sums_or_the_reason_why_there_are_none():
    assert decode_sum_answer(encode_sum_reply(SUMS)).cohort == SUMS.cohort
    reason = "PolicyError: refused by policy: min-cohort"
    data = encode_sum_refusal(reason)
    assert decode_sum_answer(data) == reason
    assert len(decode_sum_answer(encode_sum_refusal("ä" * 9999))) == 2000
    for damaged in (data[:-1], data[:3], b"", encode_sealed(REPLY)):
        with pytest.raises(WireError):
            decode_sum_answer(damaged)


def test_a_request_for_a_sum_rides_in_the_record_of_another():
    content = pack(b"payload", b"snapshot", rider=b"rider")
    assert unpack(content) == (b"payload", b"snapshot")
    assert rider_of(content) == b"rider"
    assert rider_of(pack(b"payload")) == rider_of(pack(b"payload", dense=True)) == b""
    for key, value in (("r", 7), ("x", b"more")):
        content = pack(b"payload")
        content["d"][key] = value
        with pytest.raises(WireError, match="a record 'd' with bytes 'b' expected"):
            unpack(content)


def test_a_cohort_that_cannot_be_is_refused():
    twice = dataclasses.replace(REQUEST, cohort=[SITES[0], *SITES[:2]])
    with pytest.raises(WireError, match="distinct sites"):
        decode_sum_request(encode_sum_request(twice))
    for parts in (1, 3):
        with pytest.raises(WireError, match=f"sites in each of {parts} parts"):
            decode_sum_request(encode_sum_request(dataclasses.replace(REQUEST, parts=parts)))


def test_a_cohort_is_named_by_its_parts_sites_and_answers():
    name = cohort_digest(b"d" * 16, SITES)
    assert cohort_digest(b"d" * 16, SITES[::-1]) == name
    others = [cohort_digest(b"e" * 16, SITES), cohort_digest(b"d" * 16, SITES[:2])]
    for change in ({"part": 5}, {"request": b"x" * 32}, {"slot": 99}):
        sites = [dataclasses.replace(SITES[0], **change), *SITES[1:]]
        others.append(cohort_digest(b"d" * 16, sites))
    assert len({name, *others}) == 6


def test_an_attempt_travels_with_a_request_and_a_first_one_takes_no_bytes():
    first = Request(1, 0.1, b"d" * 16, b"r" * 16, b"c" * 16, (b"entry",))
    again = dataclasses.replace(first, attempt=3)
    assert decode_request(encode_request(again)) == again
    assert len(encode_request(again)) == len(encode_request(first)) + 4
    short = encode_request(dataclasses.replace(again, entries=()))[:-8]
    with pytest.raises(WireError, match="bytes expected"):
        decode_request(close_frame(short))
