"""What travels comes back as it was sent, in the bytes that are promised, or is a WireError."""

from zlib import crc32

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.errors import WireError
from shared.protocol.entry import Entry, SlotDifferences
from shared.protocol.flower_records import message_bytes, pack, payload_bytes, unpack
from shared.protocol.messages import (
    BEHIND,
    DIVERGED,
    MEASURED,
    MISSING,
    REQUEST,
    Behind,
    Measured,
    Request,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

rounds = st.integers(0, (1 << 32) - 1)
names16 = st.binary(min_size=16, max_size=16)
floats32 = st.floats(width=32, allow_nan=False)
requests = st.builds(
    Request,
    rounds,
    st.floats(allow_nan=False),
    names16,
    names16,
    names16,
    st.lists(st.binary(max_size=30), max_size=4).map(tuple),
    st.booleans(),
)
measured = st.builds(
    Measured,
    rounds,
    st.lists(floats32, max_size=9).map(lambda row: np.array(row, np.float32)),
    rounds,
    floats32,
    floats32,
    names16,
)
behind = st.builds(Behind, rounds, st.sampled_from([MISSING, DIVERGED]))
A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


@pytest.fixture
def identity(monkeypatch):
    """What Flower sets before an app may build messages."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def fields_of(reply):
    values = dict(vars(reply))
    if isinstance(reply, Measured):
        values["differences"] = reply.differences.tobytes(), reply.differences.dtype
    return values


def flipped(data):
    for bit in range(8 * len(data)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        yield bytes(bad)


@given(requests)
@settings(deadline=None)
def test_a_request_comes_back_as_it_was_sent(request):
    assert decode_request(encode_request(request)) == request


@given(st.one_of(measured, behind))
@settings(deadline=None)
def test_a_reply_comes_back_as_it_was_sent(reply):
    decoded = decode_reply(encode_reply(reply))
    assert type(decoded) is type(reply)
    assert fields_of(decoded) == fields_of(reply)


@given(requests)
@settings(deadline=None)
def test_a_request_has_the_size_of_the_drawing(request):
    size = 72 + sum(4 + len(entry) for entry in request.entries)
    assert len(encode_request(request)) == size
    assert REQUEST.size == 2 + 2 + 4 + 4 + 8 + 3 * 16


@given(measured)
@settings(deadline=None)
def test_a_measurement_has_the_size_of_the_drawing(reply):
    assert len(encode_reply(reply)) == 44 + 4 * len(reply.differences)
    assert MEASURED.size == 2 + 2 + 4 + 4 + 4 + 4 + 4 + 16


def test_a_site_that_is_behind_says_so_in_12_bytes():
    assert len(encode_reply(Behind(9, DIVERGED))) == 12 == BEHIND.size + 4


def test_a_round_of_64_queries_takes_at_most_400_bytes_each_way():
    """Uplink and downlink of the default budget, whatever the model's size."""
    numbers = np.ones(64, np.float32)
    entry = Entry(8, 1e-3, (SlotDifferences(0, numbers),)).encode()
    down = encode_request(Request(9, 1e-3, A, B, C, (entry,)))
    up = encode_reply(Measured(9, numbers, 1000, 2.5, 0.1, A))
    assert len(down) == 360
    assert len(up) == 300
    assert len(encode_request(Request(1, 1e-3, A, B, C))) == 72


def test_the_first_bytes_name_the_kind():
    kinds = [
        encode_request(Request(1, 0.1, A, B, C)),
        encode_reply(Measured(1, np.zeros(1, np.float32), 1, 1.0, 1.0, A)),
        encode_reply(Behind(1, MISSING)),
    ]
    assert [data[:2].hex() for data in kinds] == ["11de", "12de", "13de"]
    for data in kinds[1:]:
        with pytest.raises(WireError, match="expected, got"):
            decode_request(data)
    with pytest.raises(WireError, match="a frame 0xde12 expected, got 0xde11"):
        decode_reply(kinds[0])


@given(requests)
@settings(deadline=None, max_examples=10)
def test_every_truncation_and_flipped_bit_of_a_request_is_found(request):
    data = encode_request(request)
    for bad in [*(data[:size] for size in range(len(data))), *flipped(data)]:
        with pytest.raises(WireError):
            decode_request(bad)


@given(st.one_of(measured, behind))
@settings(deadline=None, max_examples=15)
def test_every_truncation_and_flipped_bit_of_a_reply_is_found(reply):
    data = encode_reply(reply)
    for bad in [*(data[:size] for size in range(len(data))), *flipped(data)]:
        with pytest.raises(WireError):
            decode_reply(bad)


def sealed(body):
    return body + crc32(body).to_bytes(4, "little")


@given(st.sampled_from([0xDE11, 0xDE12, 0xDE13, 0xDE01]), st.binary(max_size=120))
@settings(deadline=None, max_examples=400)
def test_a_well_sealed_frame_with_any_fields_is_read_or_a_wire_error(magic, rest):
    """A peer can compute checksums too: lengths and counts must be checked, not believed."""
    data = sealed(magic.to_bytes(2, "little") + rest)
    for decode in (decode_request, decode_reply):
        try:
            decode(data)
        except WireError:
            continue


def test_a_request_that_promises_more_entries_than_it_has_is_refused():
    body = bytearray(encode_request(Request(1, 0.1, A, B, C, (b"one",)))[:-4])
    body[8:12] = (2).to_bytes(4, "little")
    with pytest.raises(WireError, match="2 entries expected, the bytes end within number 1"):
        decode_request(sealed(bytes(body)))
    body[8:12] = (0).to_bytes(4, "little")
    with pytest.raises(WireError, match="68 bytes expected, got 75"):
        decode_request(sealed(bytes(body)))


def test_a_measurement_that_promises_more_numbers_than_it_has_is_refused():
    reply = Measured(1, np.zeros(3, np.float32), 1, 1.0, 1.0, A)
    body = bytearray(encode_reply(reply)[:-4])
    body[8:12] = (1 << 31).to_bytes(4, "little")
    with pytest.raises(WireError, match="2147483648 numbers expected, got 12 bytes"):
        decode_reply(sealed(bytes(body)))


@given(st.binary(max_size=60), st.none() | st.binary(max_size=60))
@settings(deadline=None)
def test_a_record_gives_back_what_was_packed(payload, snapshot):
    assert unpack(pack(payload, snapshot)) == (payload, snapshot)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"x": ConfigRecord({"b": b"1"})}),
        RecordDict({"d": ConfigRecord({"c": b"1"})}),
        RecordDict({"d": ConfigRecord({"b": "text"})}),
        RecordDict({"d": ArrayRecord()}),
        RecordDict({"d": ConfigRecord({"b": b"1"}), "s": ArrayRecord()}),
        RecordDict(
            {
                "d": ConfigRecord({"b": b"1"}),
                "s": ArrayRecord({"s": Array("uint8", (1,), "numpy.ndarray", b"no array")}),
            }
        ),
    ],
    ids=["nothing", "other record", "other key", "text", "arrays", "no array", "numpy's"],
)
def test_a_record_of_another_shape_is_refused(content):
    with pytest.raises(WireError, match="expected, got"):
        unpack(content)


@pytest.mark.usefixtures("identity")
def test_payload_bytes_are_ours_and_message_bytes_are_all():
    payload = encode_reply(Measured(9, np.ones(64, np.float32), 1000, 2.5, 0.1, A))
    message = Message(pack(payload), dst_node_id=1, message_type="train", group_id="9")
    assert payload_bytes(message) == len(payload) == 300
    assert len(payload) < message_bytes(message) < len(payload) + 200


@pytest.mark.usefixtures("identity")
def test_a_message_with_an_error_holds_no_bytes_of_ours():
    request = Message(pack(b"123"), dst_node_id=1, message_type="train")
    request.metadata.__dict__["_message_id"] = "request"
    failed = Message(Error(code=2, reason="it broke"), reply_to=request)
    assert payload_bytes(failed) == 0
    assert message_bytes(failed) > 0


@pytest.mark.usefixtures("identity")
def test_a_snapshot_travels_without_a_frame_of_its_own():
    bare = message_bytes(Message(pack(b""), dst_node_id=1, message_type="train"))
    full = Message(pack(b"", bytes(10_000)), dst_node_id=1, message_type="train")
    assert 10_000 < message_bytes(full) - bare < 10_100
