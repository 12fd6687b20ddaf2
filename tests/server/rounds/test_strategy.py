"""A bad reply is refused and counted, and the round is what the others make it."""

import copy
import csv
from dataclasses import replace

import numpy as np
import pytest
from federation import Network, altered, config, federate, folder_of, with_payload
from flwr.app import ConfigRecord
from hazards import ROUND, failed, misbehaving

from shared.codecs.frame import seal_frame
from shared.protocol.flower_records import unpack

NAN = np.array([np.nan, 0], np.float32)


def measured(**changes):
    return lambda reply: [altered(reply, lambda m: replace(m, **changes))]


def cut(reply):
    return [with_payload(reply, unpack(reply.content)[0][:-1])]


def flipped(reply):
    payload = bytearray(unpack(reply.content)[0])
    payload[20] ^= 1
    return [with_payload(reply, bytes(payload))]


def extra_record(reply):
    result = copy.deepcopy(reply)
    result.content["more"] = ConfigRecord({"b": b"x"})
    return [result]


def of_another_node(reply):
    result = copy.deepcopy(reply)
    result.metadata.__dict__["_src_node_id"] = 99
    return [result]


def late_reply_of_an_earlier_round(reply):
    result = copy.deepcopy(reply)
    result.metadata.__dict__["_reply_to_message_id"] = "local-1"
    return [result]


BAD = {  # how a reply is bad: what arrives in its place, and the reason that is counted
    "nan": (measured(differences=NAN), "not finite"),
    "infinite": (measured(differences=NAN + np.float32(np.inf)), "not finite"),
    "infinite loss": (measured(loss=float("inf")), "not finite"),
    "too large": (measured(differences=np.full(2, 3e38, np.float32)), "too large"),
    "too large a loss": (measured(loss=3e38), "too large"),
    "unasked gradient": (measured(gradient=b"x" * 8), "wrong kind"),
    "short": (measured(differences=np.zeros(1, np.float32)), "wrong length"),
    "empty": (measured(differences=np.zeros(0, np.float32)), "wrong length"),
    "long": (measured(differences=np.zeros(3, np.float32)), "wrong length"),
    "wrong round": (measured(round=ROUND - 1), "wrong round"),
    "wrong digest": (measured(digest=bytes(16)), "wrong digest"),
    "no examples": (measured(examples=0), "no examples"),
    "more examples": (measured(examples=2**32 - 1), "other examples"),
    "negative time": (measured(seconds=-1.0), "no examples"),
    "oversized": (measured(differences=np.zeros(10_000, np.float32)), "oversized"),
    "snapshot": (lambda r: [with_payload(r, unpack(r.content)[0], b"x" * 999)], "oversized"),
    "cut": (cut, "undecodable"),
    "flipped bit": (flipped, "undecodable"),
    "nothing": (lambda r: [with_payload(r, b"")], "undecodable"),
    "extra record": (extra_record, "undecodable"),
    "error": (failed, "error"),
    "absent": (lambda r: [], "no answer"),
    "other node": (of_another_node, "not asked"),
    "late": (late_reply_of_an_earlier_round, "not asked"),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return federate(config(tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """The run in which the site that misbehaves in the others is simply not there in that round."""
    chosen = config(tmp_path_factory.mktemp("without"))
    return federate(chosen, Network(chosen, change=misbehaving(lambda reply: [])))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_is_refused_and_counted_and_changes_nothing_else(
    tmp_path, caplog, name, without, undisturbed
):
    how, reason = BAD[name]
    chosen = config(tmp_path)
    result = federate(chosen, Network(chosen, change=misbehaving(how)))
    assert result.digest == without.digest != undisturbed.digest
    assert result.entries == without.entries
    absent_too = {"no answer": 1} if reason == "not asked" else {}
    assert result.summary["refusals"] == {reason: 1, **absent_too}
    assert result.summary["refused_replies"] == 1 + len(absent_too)
    assert f"refused: {reason}" in caplog.text
    who = "node 99" if name == "other node" else "1"
    if name != "late":
        assert result.rows["refusals"][0][1:4] == (ROUND, who, reason)
    with (folder_of(chosen) / "clients.csv").open() as file:
        recorded = {(row["round"], row["site"]): row["refusal"] for row in csv.DictReader(file)}
    assert recorded["2", "1"] == (reason if reason != "not asked" else "no answer")
    assert recorded["2", "0"] == recorded["3", "1"] == ""


DENSE = {  # the same for a round that asks for gradients
    "no gradient": (measured(gradient=b""), "wrong kind"),
    "short gradient": (lambda r: [altered(r, lambda m: shortened(m, 1))], "bad gradient"),
    "cut gradient": (lambda r: [altered(r, lambda m: shortened(m, 20))], "bad gradient"),
    "flipped gradient": (lambda r: [altered(r, corrupted)], "bad gradient"),
    "infinite gradient": (lambda r: [altered(r, infinite)], "bad gradient"),
    "long gradient": (lambda r: [altered(r, lengthened)], "oversized"),
    "wrong digest": BAD["wrong digest"],
    "nothing": BAD["nothing"],
    "absent": BAD["absent"],
}


def shortened(reply, count):
    return replace(reply, gradient=reply.gradient[:-count])


def lengthened(reply):
    return replace(reply, gradient=reply.gradient + bytes(4000))


def corrupted(reply):
    return replace(reply, gradient=reply.gradient[:-1] + bytes([reply.gradient[-1] ^ 1]))


def infinite(reply):
    body = reply.gradient[16:-4] + np.float32(np.inf).tobytes()
    return replace(reply, gradient=seal_frame(b"f32\0", len(body) // 4, body))


@pytest.fixture(scope="module")
def dense_without(tmp_path_factory):
    chosen = config(tmp_path_factory.mktemp("dense"), mode="fo", scope="regex:ln_f")
    return federate(chosen, Network(chosen, change=misbehaving(lambda reply: [])))


@pytest.mark.parametrize("name", DENSE)
def test_a_bad_gradient_is_refused_and_counted_and_changes_nothing_else(
    tmp_path, name, dense_without
):
    how, reason = DENSE[name]
    chosen = config(tmp_path, mode="fo", scope="regex:ln_f")
    result = federate(chosen, Network(chosen, change=misbehaving(how)))
    assert result.digest == dense_without.digest
    assert result.summary["refusals"] == {reason: 1}


def test_a_copy_of_a_reply_is_refused_and_the_reply_counts(tmp_path, undisturbed):
    chosen = config(tmp_path)
    twice = Network(chosen, change=misbehaving(lambda r: [r, copy.deepcopy(r), r]))
    result = federate(chosen, twice)
    assert result.digest == undisturbed.digest
    assert result.summary["refusals"] == {"duplicate": 2}


@pytest.mark.parametrize("last", [True, False])
def test_of_two_replies_that_differ_the_same_one_counts_whichever_comes_first(tmp_path, last):
    def both(reply):
        other = altered(reply, lambda m: replace(m, loss=1.0))
        return [reply, other] if last else [other, reply]

    chosen = config(tmp_path)
    result = federate(chosen, Network(chosen, change=misbehaving(both)))
    assert [row[4] for row in result.rows["contributions"] if row[:2] == (2, 2)] == [1.0]
