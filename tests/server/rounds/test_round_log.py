"""Traffic and refusals are written with their round, each once, whoever added them."""

import pytest
from federation import Network, config, federate
from flwr.app import Message, MessageType
from flwr.supercore.task_identity import TaskIdentity

from server.rounds import replies
from server.rounds.round_log import RoundLog
from shared.codecs import CODECS
from shared.protocol.flower_records import pack, unpack
from shared.protocol.messages import decode_reply


@pytest.fixture
def log(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    return RoundLog(None)  # nothing of it is written here


def message(payload, message_type=MessageType.TRAIN, **content):
    return Message(pack(payload, **content), 2, message_type)


def test_rows_of_later_rounds_stay_and_no_row_is_taken_twice(log):
    log.add_sent(message(b"abc"), 2, "x")
    log.add_received(message(b"de"), 1, "x")
    log.refuse(1, "x", "late")
    log.refuse(2, "y", "error", "broken")
    transfers, refusals = log.until(1)
    assert [(t.round, t.direction, t.payload) for t in transfers] == [(1, "up", 2)]
    assert [(r.round, r.site, r.reason) for r in refusals] == [(1, "x", "late")]
    assert [r.detail for r in log.refusals] == ["broken"]
    transfers, refusals = log.until(5)
    assert [(t.round, t.direction, t.payload) for t in transfers] == [(2, "down", 3)]
    assert [r.reason for r in refusals] == ["error"]
    assert log.until(5) == ([], [])


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (message, "scalars"),
        (lambda payload: message(payload, dense=True), "gradient"),
        (lambda payload: message(payload, snapshot=b"s"), "snapshot"),
        (lambda payload: message(payload, MessageType.QUERY), "control"),
    ],
)
def test_a_message_is_of_the_kind_of_what_it_carries(log, sent, kind):
    log.add_sent(sent(b"abc"), 1, "x")
    ((transfer,), _) = log.until(1)
    assert (transfer.kind, transfer.payload) == (kind, 4 if kind == "snapshot" else 3)


def test_a_reply_is_decoded_once(tmp_path, monkeypatch):
    decoded, decode = [], replies.decode_reply
    monkeypatch.setattr(replies, "decode_reply", lambda data: decoded.append(data) or decode(data))
    chosen = config(tmp_path)
    federate(chosen)
    assert len(decoded) == chosen.federation.num_clients * chosen.training.rounds


def test_a_gradient_that_a_site_sends_is_decoded_for_its_length_and_its_use(tmp_path, monkeypatch):
    decoded, sent, decode = [], [], CODECS["float32"].decode

    def count(codec, payload):
        decoded.append(bytes(payload))
        return decode(codec, payload)

    def note(reply):
        if reply.metadata.message_type == MessageType.TRAIN:
            sent.append(bytes(decode_reply(unpack(reply.content)[0]).gradient))
        return [reply]

    monkeypatch.setattr(CODECS["float32"], "decode", count)
    chosen = config(tmp_path, mode="fo", scope="regex:ln_f")
    federate(chosen, Network(chosen, change=note))
    assert len(sent) == chosen.federation.num_clients * chosen.training.rounds
    assert [decoded.count(gradient) for gradient in sent] == [2] * len(sent)
