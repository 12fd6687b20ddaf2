"""The length of a message is counted exactly, and without a copy of what is long."""

import tracemalloc

import pytest
from flwr.app import ConfigRecord, Message, MessageType
from flwr.common.serde import message_to_proto
from flwr.supercore.task_identity import TaskIdentity

from server.rounds.round_log import transfer
from shared.protocol.flower_records import STAND_IN, message_bytes, pack


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def message(size, snapshot=None, dense=False):
    content = pack(b"x" * size, snapshot, dense)
    return Message(content=content, dst_node_id=1, message_type=MessageType.TRAIN)


SIZES = (0, 1, 127, 128, STAND_IN - 100, STAND_IN, STAND_IN + 1, 3 * STAND_IN)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("snapshot", [None, b"s", b"s" * (STAND_IN + 9)])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_length_of_the_serialised_message(size, snapshot, dense):
    each = message(size, snapshot, dense)
    assert message_bytes(each) == len(message_to_proto(each).SerializeToString())


def test_counting_changes_nothing():
    size = 2 * STAND_IN
    each = message(size)
    each.content["more"] = ConfigRecord({"b": b"y" * size, "n": [1, 2]})
    before = message_to_proto(each).SerializeToString()
    assert message_bytes(each) == len(before)
    assert message_to_proto(each).SerializeToString() == before


@pytest.mark.parametrize("dense", [False, True])
def test_a_reply_of_fifty_megabytes_is_counted_without_a_copy_of_it(dense):
    each = message(50_000_000, dense=dense)
    tracemalloc.start()
    try:
        assert transfer(each, 1, "a site", "up").payload == 50_000_000
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
