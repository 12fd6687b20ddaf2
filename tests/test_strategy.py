"""Whatever a site sends or fails to send, a round is what its valid replies make it."""

import copy
import csv
import logging
from dataclasses import replace

import numpy as np
import pytest
from federation import (
    Network,
    Processes,
    altered,
    config,
    federate,
    folder_of,
    is_reply,
    ledger_of,
    resumed,
    with_payload,
)
from flwr.app import ConfigRecord, Error, Message, MessageType

from server.cohort import Cohort, Outsider
from shared.errors import StalledError
from shared.wire import Behind, decode_hello, encode_hello, encode_reply, pack, unpack

SITE, ROUND = 1, 2  # the site that misbehaves in this round of three
NAN = np.array([np.nan, 0], np.float32)


def measured(**changes):
    return lambda reply: [altered(reply, lambda m: replace(m, **changes))]


def cut(reply):
    return [with_payload(reply, unpack(reply.content)[0][:-1])]


def flipped(reply):
    payload = bytearray(unpack(reply.content)[0])
    payload[20] ^= 1
    return [with_payload(reply, bytes(payload))]


def failed(reply):
    found = copy.deepcopy(reply)
    found.__dict__["_content"] = None
    found.__dict__["_error"] = Error(code=8, reason="ClientApp stopped responding.")
    return [found]


def extra_record(reply):
    found = copy.deepcopy(reply)
    found.content["more"] = ConfigRecord({"b": b"x"})
    return [found]


def of_another_node(reply):
    found = copy.deepcopy(reply)
    found.metadata.__dict__["_src_node_id"] = 99
    return [found]


def late_reply_of_an_earlier_round(reply):
    found = copy.deepcopy(reply)
    found.metadata.__dict__["_reply_to_message_id"] = "local-1"
    return [found]


BAD = {  # how a reply is bad: what arrives in its place, and the reason that is counted
    "nan": (measured(differences=NAN), "not finite"),
    "infinite": (measured(differences=NAN + np.float32(np.inf)), "not finite"),
    "infinite loss": (measured(loss=float("inf")), "not finite"),
    "short": (measured(differences=np.zeros(1, np.float32)), "wrong length"),
    "empty": (measured(differences=np.zeros(0, np.float32)), "wrong length"),
    "long": (measured(differences=np.zeros(3, np.float32)), "wrong length"),
    "wrong round": (measured(round=ROUND - 1), "wrong round"),
    "wrong digest": (measured(digest=bytes(16)), "wrong digest"),
    "no examples": (measured(examples=0), "no examples"),
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


def misbehaving(how, site=SITE, round_=ROUND):
    return lambda reply: how(reply) if is_reply(reply, site, round_) else [reply]


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
    found = federate(chosen, Network(chosen, change=misbehaving(how)))
    assert found.digest == without.digest != undisturbed.digest
    assert found.entries == without.entries
    absent_too = {"no answer": 1} if reason == "not asked" else {}
    assert found.summary["refusals"] == {reason: 1, **absent_too}
    assert found.summary["refused_replies"] == 1 + len(absent_too)
    assert f"refused: {reason}" in caplog.text
    who = "node 99" if name == "other node" else "1"
    if name != "late":
        assert found.rows["refusals"][0][1:4] == (ROUND, who, reason)
    with (folder_of(chosen) / "clients.csv").open() as file:
        said = {(row["round"], row["site"]): row["refusal"] for row in csv.DictReader(file)}
    assert said["2", "1"] == (reason if reason != "not asked" else "no answer")
    assert said["2", "0"] == said["3", "1"] == ""


def test_a_copy_of_a_reply_is_refused_and_the_reply_counts(tmp_path, undisturbed):
    chosen = config(tmp_path)
    twice = Network(chosen, change=misbehaving(lambda r: [r, copy.deepcopy(r), r]))
    found = federate(chosen, twice)
    assert found.digest == undisturbed.digest
    assert found.summary["refusals"] == {"duplicate": 2}


@pytest.mark.parametrize("last", [True, False])
def test_of_two_replies_that_differ_the_same_one_counts_whichever_comes_first(tmp_path, last):
    def both(reply):
        other = altered(reply, lambda m: replace(m, examples=7, loss=1.0))
        return [reply, other] if last else [other, reply]

    chosen = config(tmp_path)
    found = federate(chosen, Network(chosen, change=misbehaving(both)))
    assert [row[3:5] for row in found.rows["contributions"] if row[:2] == (2, 2)] == [(7, 1.0)]


def test_a_site_that_goes_on_saying_that_it_is_behind_is_refused(tmp_path, without):
    chosen = config(tmp_path)
    behind = encode_reply(Behind(0, 0))
    found = federate(
        chosen, Network(chosen, change=misbehaving(lambda r: [with_payload(r, behind)]))
    )
    assert found.digest == without.digest
    assert found.summary["refusals"] == {"behind": 1}
    down = [row for row in found.rows["traffic"] if row[1:4] == (2, "1", "down")]
    assert len(down) == 3  # the request and two more, all of them sent


def test_a_round_with_too_few_valid_replies_is_skipped_and_tried_again(tmp_path, undisturbed):
    chosen = config(tmp_path, min_clients=2)
    refusing = iter([True, True])  # the first attempt at round 2: of three sites two are not there

    def change(reply):
        return [] if is_reply(reply, round_=2) and next(refusing, False) else [reply]

    found = federate(chosen, Network(chosen, change=change))
    assert found.digest == undisturbed.digest
    assert found.summary["skipped_rounds"] == 1
    assert found.summary["refusals"] == {"no answer": 2}
    assert [row[1:] for row in found.rows["skips"]] == [(2, "1 of 2 valid replies")]
    spent = sum(row[5] for row in found.rows["traffic"] if row[1] == 2 and row[3] == "down")
    assert found.rows["metrics"][1][8] == spent > undisturbed.rows["metrics"][1][8]


def test_too_many_skipped_rounds_stop_the_run_and_leave_the_ledger_whole(tmp_path, undisturbed):
    chosen = config(tmp_path, max_skipped_rounds=2)
    deaf = Network(chosen, change=lambda r: [] if is_reply(r, round_=3) else [r])
    with pytest.raises(StalledError, match=r"round 3 was skipped 2 times .* holds round 2"):
        federate(chosen, deaf)
    with ledger_of(chosen) as ledger:
        assert ledger.payloads(0, ledger.last_round) == undisturbed.entries[:2]
    assert federate(resumed(chosen)).digest == undisturbed.digest


def test_skips_count_only_in_a_row(tmp_path):
    chosen = config(tmp_path, max_skipped_rounds=2, num_clients=1)
    odd = iter(range(100))
    network = Network(chosen, change=lambda r: [] if is_reply(r) and next(odd) % 2 else [r])
    assert federate(chosen, network).summary["skipped_rounds"] == 2


def test_the_server_waits_for_enough_sites_and_says_how_many_are_there(tmp_path, caplog):
    caplog.set_level(logging.INFO, "dandelion")
    chosen = config(tmp_path, min_clients=4)
    with pytest.raises(StalledError, match="4 sites needed for round 1, 3 came within"):
        federate(chosen)
    assert "waiting for sites: 3 of 4 are there" in caplog.text


def test_a_site_that_comes_while_the_server_waits_is_met(tmp_path, undisturbed):
    chosen = config(tmp_path, min_clients=3, wait_timeout=2.0)

    class Growing(Network):
        looks = 0

        def get_node_ids(self):
            self.looks += 1
            return list(super().get_node_ids())[: self.looks]

    assert federate(chosen, Growing(chosen)).digest == undisturbed.digest


def introduced(**changes):
    """Change how site 1 introduces itself."""

    def change(reply):
        if reply.metadata.message_type != MessageType.QUERY or reply.metadata.src_node_id != 3:
            return [reply]
        hello = decode_hello(unpack(reply.content)[0])
        return [with_payload(reply, encode_hello(replace(hello, **changes)))]

    return change


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"code": "00" * 16}, "other source files: "),
        ({"base": "00" * 16}, "another base model: "),
        ({"site": "0"}, "site '0' is here already, as node 2"),
        ({"slot": 1}, "slot 1 is taken by site '0'"),
        ({"slot": 0}, "introduction: slot is '0'"),
        ({"site": "a\nb"}, "introduction: site is "),
        ({"round": -1}, "introduction: round is "),
    ],
    ids=str,
)
def test_a_site_that_cannot_take_part_is_refused_with_a_reason(tmp_path, caplog, changes, reason):
    chosen = config(tmp_path)
    found = federate(chosen, Network(chosen, change=introduced(**changes)))
    assert reason in caplog.text
    assert found.summary["clients"] == 2
    assert found.summary["refusals"] == {"introduction": 1}
    ((_, round_, _, _, detail),) = found.rows["refusals"]
    assert round_ == 1
    assert detail.startswith(reason)


@pytest.mark.parametrize("payload", [b"", b"[" * 3000, b"x" * 9999], ids=["empty", "deep", "long"])
def test_a_site_whose_introduction_cannot_be_read_is_refused(tmp_path, payload):
    chosen = config(tmp_path)

    def change(reply):
        garbled = reply.metadata.message_type == MessageType.QUERY
        return [with_payload(reply, payload)] if garbled and is_of(reply, 1) else [reply]

    found = federate(chosen, Network(chosen, change=change))
    assert (found.summary["clients"], found.summary["refusals"]) == (2, {"introduction": 1})


def is_of(reply, site):
    return reply.metadata.src_node_id == site + 2


def test_all_reasons_are_in_the_message_when_no_site_is_left(tmp_path):
    chosen = config(tmp_path, num_clients=2)
    broken = Network(chosen, client=lambda message, context: 1 / 0)
    reasons = r"\['could not introduce itself: ZeroDivisionError: division by zero', 'could not"
    with pytest.raises(StalledError, match=reasons):
        federate(chosen, broken)


def test_a_refused_node_is_asked_again_after_a_while_and_when_its_rival_is_gone(
    tmp_path, monkeypatch
):
    """A site that restarts has a new node id while Flower still lists the old one for a minute."""
    chosen = config(tmp_path)
    network, accepts = Network(chosen, change=introduced(site="0")), lambda hello: ""
    cohort = Cohort(chosen, accepts, b"r" * 16)
    cohort.meet(network, 1)
    assert sorted(cohort.sites) == ["0", "2"]
    assert list(cohort.outsiders) == [3]
    cohort.meet(network, 1)
    assert len(network.sent) == 3  # not yet
    network._contexts.pop(2)
    monkeypatch.setattr("server.cohort.time.monotonic", lambda: 1e9)
    cohort.meet(network, 1)
    assert cohort.sites["0"].node_id == 3
    assert not cohort.outsiders


def test_a_node_that_is_slow_to_introduce_itself_delays_one_round_and_is_met_later(tmp_path):
    chosen = config(tmp_path)
    held = []

    def change(reply):
        if reply.metadata.message_type == MessageType.QUERY and is_of(reply, 1):
            held.append(reply)
            return []
        return [reply]

    network = Network(chosen, change=change)
    cohort = Cohort(chosen, lambda hello: "", b"r" * 16)
    cohort.meet(network, 1)
    assert sorted(cohort.sites) == ["0", "2"]
    assert isinstance(cohort.outsiders[3], Outsider)
    network.change = lambda reply: [reply]
    cohort.meet(network, 2)
    assert len(network.sent) == 3  # nobody is asked twice
    network._inbox[held[0].metadata.reply_to_message_id] = held[0]
    cohort.meet(network, 3)
    assert sorted(cohort.sites) == ["0", "1", "2"]


def flip(host):
    flat = host._learner.replica.model.flat
    flat.view(-1)[5] += 1e-3


@pytest.mark.parametrize("interval", [0, 2], ids=["base", "snapshot"])
def test_a_diverged_replica_is_found_at_once_and_resynchronised(tmp_path, interval):
    changes = {"snapshot_interval": interval, "catch_up": "snapshot", "num_rounds": 4}
    chosen, nodes = config(tmp_path, **changes), Processes()

    def on_round(run, round_):
        if round_ == 3:
            flip(nodes.host(3))

    found = federate(chosen, Network(chosen, nodes), on_round)
    assert found.digest == federate(config(tmp_path, "expected", **changes)).digest
    assert found.summary["refusals"] == {"diverged": 1}
    assert [row[1:4] for row in found.rows["refusals"]] == [(4, "1", "diverged")]
    kinds = [row[4] for row in found.rows["traffic"] if row[1:4] == (4, "1", "down")]
    assert kinds == ["scalars", "snapshot" if interval else "scalars"]
    assert nodes.host(3)._learner.replica.digest() == nodes.host(2)._learner.replica.digest()


def test_a_site_is_brought_back_while_another_is_still_measuring(tmp_path, undisturbed):
    """Site 2 answers round 2 only when site 1, whose replica diverged, was sent what it lacks."""
    chosen, nodes = config(tmp_path, round_timeout=60.0), Processes()
    network = Network(chosen, nodes)
    held = []

    def change(reply):
        if is_reply(reply, 1, 2) and held:
            return [reply, held.pop()]
        if is_reply(reply, 2, 2):
            held.append(reply)
            return []
        return [reply]

    def measured_once(reply):
        behind = len(unpack(reply.content)[0]) < 20
        return [reply] if behind else change(reply)

    network.change = measured_once
    found = federate(chosen, network, lambda run, at: flip(nodes.host(3)) if at == 1 else None)
    assert found.digest == undisturbed.digest
    assert found.summary["refusals"] == {"diverged": 1}


def test_a_grid_that_cannot_deliver_a_reply_says_so_in_the_servers_own_name(tmp_path, without):
    """Flower's error of an unavailable reply has the server's node as its source."""
    chosen = config(tmp_path)

    def unavailable(reply):
        (found,) = failed(reply)
        found.metadata.__dict__["_src_node_id"] = 1
        return [found]

    found = federate(chosen, Network(chosen, change=misbehaving(unavailable)))
    assert found.digest == without.digest
    assert [row[1:4] for row in found.rows["refusals"]] == [(2, "1", "error")]


def test_a_message_that_flower_cannot_push_is_not_waited_for(tmp_path, without):
    chosen = config(tmp_path, round_timeout=30.0)

    class Leaky(Network):
        def push_messages(self, messages):
            names = super().push_messages(messages)
            if names and messages[0].metadata.group_id == "2":
                names[1] = None  # what Flower gives for a message that it could not push
            return names

    found = federate(chosen, Leaky(chosen))
    assert found.digest == without.digest
    assert found.summary["refusals"] == {"no answer": 1}


def test_a_site_with_other_code_does_not_measure_for_this_server(tmp_path, monkeypatch):
    chosen = config(tmp_path, max_skipped_rounds=1)
    monkeypatch.setattr("client.app.code_digest", lambda: b"other code......")
    with pytest.raises(StalledError):
        federate(chosen)
    with ledger_of(chosen) as ledger:
        assert ledger.rows("SELECT count(*) FROM refusals WHERE reason = 'error'") == [(3,)]
        ((detail,),) = ledger.rows("SELECT DISTINCT detail FROM refusals")
    assert "WireError: this site has other source files than the server" in detail


def test_what_is_no_request_is_an_error_reply(tmp_path):
    """The client app answers what it understands; the rest is Flower's to report."""
    chosen = config(tmp_path)
    network = Network(chosen)
    asked = Message(pack(b"nonsense"), 2, MessageType.TRAIN, group_id="1")
    (reply,) = network.pull_messages(network.push_messages([asked]))
    assert reply.has_error()
    assert "WireError" in reply.error.reason
