"""Sites that are behind, astray or silent cost a round time, and never its bits."""

import pytest
from federation import (
    Network,
    Processes,
    config,
    federate,
    is_reply,
    ledger_of,
    resumed,
    with_payload,
)
from flwr.app import Message, MessageType
from hazards import failed, misbehaving

from shared.base.errors import StalledError
from shared.protocol.flower_records import pack, unpack
from shared.protocol.messages import Behind, encode_reply


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return federate(config(tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """The run in which the site that misbehaves in the others is simply not there in that round."""
    chosen = config(tmp_path_factory.mktemp("without"))
    return federate(chosen, Network(chosen, change=misbehaving(lambda reply: [])))


def test_a_site_that_goes_on_saying_that_it_is_behind_is_refused(tmp_path, without):
    chosen = config(tmp_path)
    behind = encode_reply(Behind(0, 0))
    result = federate(
        chosen, Network(chosen, change=misbehaving(lambda r: [with_payload(r, behind)]))
    )
    assert result.digest == without.digest
    assert result.summary["refusals"] == {"behind": 1}
    down = [row for row in result.rows["traffic"] if row[1:4] == (2, "1", "down")]
    assert len(down) == 3  # the request and two more, all of them sent


def test_a_round_with_too_few_valid_replies_is_skipped_and_tried_again(tmp_path, undisturbed):
    chosen = config(tmp_path, min_clients=2)
    refusing = iter([True, True])  # the first attempt at round 2: of three sites two are not there

    def change(reply):
        return [] if is_reply(reply, round_=2) and next(refusing, False) else [reply]

    result = federate(chosen, Network(chosen, change=change))
    assert result.digest == undisturbed.digest
    assert result.summary["skipped_rounds"] == 1
    assert result.summary["refusals"] == {"no answer": 2}
    assert [row[1:] for row in result.rows["skips"]] == [(2, "1 of 2 valid replies")]
    spent = sum(row[5] for row in result.rows["traffic"] if row[1] == 2 and row[3] == "down")
    assert result.rows["metrics"][1][8] == spent > undisturbed.rows["metrics"][1][8]


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


def flip(host):
    flat = host._oracle.replica.model.flat
    flat.view(-1)[5] += 1e-3


@pytest.mark.parametrize("interval", [0, 2], ids=["base", "snapshot"])
def test_a_diverged_replica_is_found_at_once_and_resynchronised(tmp_path, interval):
    changes = {"snapshot_interval": interval, "catch_up": "snapshot", "num_rounds": 4}
    chosen, nodes = config(tmp_path, **changes), Processes()

    def on_round(run, round_):
        if round_ == 3:
            flip(nodes.host(3))

    result = federate(chosen, Network(chosen, nodes), on_round)
    assert result.digest == federate(config(tmp_path, "expected", **changes)).digest
    assert result.summary["refusals"] == {"diverged": 1}
    assert [row[1:4] for row in result.rows["refusals"]] == [(4, "1", "diverged")]
    kinds = [row[4] for row in result.rows["traffic"] if row[1:4] == (4, "1", "down")]
    assert kinds == ["scalars", "snapshot" if interval else "scalars"]
    assert nodes.host(3)._oracle.replica.digest() == nodes.host(2)._oracle.replica.digest()


def test_a_site_is_brought_back_while_another_is_still_measuring(tmp_path, undisturbed):
    """Site 2 answers round 2 only when site 1, whose replica diverged, was sent what it lacks."""
    chosen, nodes = config(tmp_path, round_timeout=60.0), Processes()
    network = Network(chosen, nodes)
    withheld = []

    def change(reply):
        if is_reply(reply, 1, 2) and withheld:
            return [reply, withheld.pop()]
        if is_reply(reply, 2, 2):
            withheld.append(reply)
            return []
        return [reply]

    def measured_once(reply):
        behind = len(unpack(reply.content)[0]) < 20
        return [reply] if behind else change(reply)

    network.change = measured_once
    result = federate(chosen, network, lambda run, at: flip(nodes.host(3)) if at == 1 else None)
    assert result.digest == undisturbed.digest
    assert result.summary["refusals"] == {"diverged": 1}


def test_a_grid_that_cannot_deliver_a_reply_says_so_in_the_servers_own_name(tmp_path, without):
    """Flower's error of an unavailable reply has the server's node as its source."""
    chosen = config(tmp_path)

    def unavailable(reply):
        (result,) = failed(reply)
        result.metadata.__dict__["_src_node_id"] = 1
        return [result]

    result = federate(chosen, Network(chosen, change=misbehaving(unavailable)))
    assert result.digest == without.digest
    assert [row[1:4] for row in result.rows["refusals"]] == [(2, "1", "error")]


def test_a_message_that_flower_cannot_push_is_not_waited_for(tmp_path, without):
    chosen = config(tmp_path, round_timeout=30.0)

    class Leaky(Network):
        def push_messages(self, messages):
            names = super().push_messages(messages)
            if names and messages[0].metadata.group_id == "2":
                names[1] = None  # what Flower gives for a message that it could not push
            return names

    result = federate(chosen, Leaky(chosen))
    assert result.digest == without.digest
    assert result.summary["refusals"] == {"no answer": 1}


def test_a_site_with_other_code_does_not_measure_for_this_server(tmp_path, monkeypatch):
    chosen = config(tmp_path, max_skipped_rounds=1)
    monkeypatch.setattr("client.site.in_process_work.source_digest", lambda *_: b"other code......")
    with pytest.raises(StalledError):
        federate(chosen)
    with ledger_of(chosen) as ledger:
        assert [refusal.reason for refusal in ledger.refusals()] == ["error"] * 3
        (detail,) = {refusal.detail for refusal in ledger.refusals()}
    assert "WireError: this site has other source files than the server" in detail


def test_what_is_no_request_is_an_error_reply(tmp_path):
    """The client app answers what it understands; the rest is Flower's to report."""
    chosen = config(tmp_path)
    network = Network(chosen)
    request = Message(pack(b"nonsense"), 2, MessageType.TRAIN, group_id="1")
    (reply,) = network.pull_messages(network.push_messages([request]))
    assert reply.has_error()
    assert "WireError" in reply.error.reason
