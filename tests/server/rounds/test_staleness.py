"""With ``staleness = 1`` two rounds are open at once, and each is measured where it says it was."""

import numpy as np
import pytest
from federation import Network, Processes, config, federate, is_reply, ledger_of, replayed, resumed
from flwr.app import MessageType
from hazards import Cut, cut_at, failed

from client.site.replica_host import ReplicaHost
from shared.base.errors import ConfigError
from shared.modes.mode import parameters_round
from shared.protocol.flower_records import unpack
from shared.protocol.messages import Behind, Request, decode_reply, decode_request
from shared.replica.replica import digest_of
from shared.training.oracle import Oracle

CHANGES = {"staleness": 1, "num_rounds": 6, "optimizer": "adam", "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return federate(config(tmp_path_factory.mktemp("undisturbed"), **CHANGES))


def test_a_round_is_measured_at_the_round_before_or_one_earlier(tmp_path):
    chosen = config(tmp_path)
    assert [parameters_round(chosen, k) for k in (1, 2, 3, 9)] == [0, 1, 2, 8]
    stale = chosen.replace(staleness=1)
    assert [parameters_round(stale, k) for k in (1, 2, 3, 9)] == [0, 0, 1, 7]


@pytest.mark.parametrize("changes", [{}, {"local_steps": 2}, {"seed_schedule": "independent"}])
def test_what_the_ledger_holds_is_what_is_measured_at_those_parameters(tmp_path, changes):
    """Measured anew at the parameters that the ledger gives for that round, bit for bit."""
    chosen = config(tmp_path, **CHANGES | {"num_rounds": 4} | changes)
    result = federate(chosen)
    with ledger_of(chosen) as ledger:
        for round_, slot, site, _, _, _, differences, _ in result.rows["contributions"]:
            at, host = parameters_round(chosen, round_), ReplicaHost(chosen)
            host._run, replica = b"r" * 16, host._oracle.replica
            flat = replayed(chosen, ledger, at)
            assert digest_of(flat) == ledger.digest(at)
            replica.model.flat.copy_(flat)
            replica.set_round(at)
            rate = ledger.entry(round_).learning_rate
            request = Request(round_, rate, replica.digest(), b"r" * 16, b"c" * 16)
            node = {"partition-id": int(site), "num-partitions": chosen.federation.num_clients}
            measured = host.train(node, request, None)
            assert measured.differences.astype("<f4").tobytes() == differences, (round_, slot)
    fresh = federate(config(tmp_path, "fresh", **CHANGES | {"staleness": 0, "num_rounds": 4}))
    assert result.entries[1:] != fresh.entries[1:]


def test_the_next_round_is_asked_for_before_the_last_reply_is_in(tmp_path, undisturbed):
    chosen = config(tmp_path, **CHANGES)
    order: list[tuple[str, int]] = []

    class Noting(Network):
        def push_messages(self, messages):
            listed = list(messages)
            order.extend(("asked", int(m.metadata.group_id)) for m in listed if trains(m))
            return super().push_messages(listed)

        def pull_messages(self, message_ids):
            result = super().pull_messages(message_ids)
            order.extend(("read", int(m.metadata.group_id)) for m in result if trains(m))
            return result

    assert federate(chosen, Noting(chosen)).digest == undisturbed.digest
    for round_ in range(1, chosen.training.rounds):
        assert order.index(("asked", round_ + 1)) < order.index(("read", round_))
    for round_ in range(1, chosen.training.rounds - 1):
        assert order.index(("asked", round_ + 2)) > order.index(("read", round_))


def trains(message):
    return message.metadata.message_type == MessageType.TRAIN


def test_a_site_is_sent_one_entry_a_round(tmp_path):
    chosen = config(tmp_path, **CHANGES)
    network = Network(chosen)
    federate(chosen, network)
    entries = {}
    for message in filter(trains, network.sent):
        request = decode_request(unpack(message.content)[0])
        entries.setdefault(request.round, set()).add(len(request.entries))
    assert entries == {1: {0}, 2: {0}, 3: {1}, 4: {1}, 5: {1}, 6: {1}}


@pytest.mark.parametrize("keep", [True, False], ids=["sites stay", "sites start again"])
@pytest.mark.parametrize("last", [0, 1, 2, 5, 6])
def test_a_server_that_was_killed_goes_on_with_the_same_bits(tmp_path, undisturbed, last, keep):
    chosen, nodes = config(tmp_path, **CHANGES), Processes()
    with pytest.raises(Cut):
        federate(chosen, Network(chosen, nodes), cut_at(last))
    again = resumed(chosen)
    result = federate(again, Network(again, nodes if keep else Processes()))
    assert (result.digest, result.entries) == (undisturbed.digest, undisturbed.entries)


def test_sites_that_are_ahead_of_a_resumed_server_answer_what_they_answered(tmp_path, undisturbed):
    """Round 3 is committed, 5 asked for: sites are at round 3 when 4 is asked for again."""
    chosen, nodes = config(tmp_path, **CHANGES), Processes()
    network = Network(chosen, nodes)
    network.change = lambda reply: [] if is_reply(reply, round_=4) else [reply]
    with pytest.raises(Cut):
        federate(chosen.replace(max_skipped_rounds=1, round_timeout=0.5), network, cut_at(3))
    ask_ahead(network, nodes, 5)
    assert {nodes.host(k)._oracle.replica.round for k in (2, 3, 4)} == {3}
    again = resumed(chosen)
    second = Network(again, nodes)
    result = federate(again, second)
    assert (result.digest, result.entries) == (undisturbed.digest, undisturbed.entries)
    fourth = [decode_reply(unpack(r.content)[0]) for r in second.received if is_reply(r, None, 4)]
    assert len(fourth) == 3
    assert not any(isinstance(reply, Behind) for reply in fourth)


def test_sites_that_are_ahead_and_have_forgotten_start_again_from_the_base(tmp_path, undisturbed):
    chosen, nodes = config(tmp_path, **CHANGES), Processes()
    network = Network(chosen, nodes)
    with pytest.raises(Cut):
        federate(chosen, network, cut_at(3))
    ask_ahead(network, nodes, 5)
    for number in (2, 3, 4):
        for site in nodes.host(number)._sites.values():
            site._answers.clear()
    again = resumed(chosen)
    second = Network(again, nodes)
    result = federate(again, second)
    assert (result.digest, result.entries) == (undisturbed.digest, undisturbed.entries)
    requests = [decode_request(unpack(m.content)[0]) for m in filter(trains, second.sent)]
    assert [r.reset for r in requests if r.round == 4] == [False] * 3 + [True] * 3


def ask_ahead(network, nodes, round_):
    """What a server does just before it is killed: it asks for the round after the next."""
    path = next(iter(nodes.memories[2].values()))._config
    with ledger_of(path) as ledger:
        at = ledger.last_round
        assert parameters_round(path, round_) == at
        entry, digest, run, rate = (
            ledger.payloads(at - 1, at), ledger.digest(at), ledger.header("run"),
            ledger.entry(at).learning_rate,
        )  # fmt: skip
    for number in (2, 3, 4):
        request = Request(round_, rate, digest, run, b"c" * 16, entry)
        node = dict(network._contexts[number].node_config)
        assert not isinstance(nodes.host(number).train(node, request, None), Behind)


def test_a_round_that_is_skipped_is_asked_for_again_beside_the_next(tmp_path, undisturbed):
    chosen = config(tmp_path, **CHANGES, min_clients=3)
    lost = []

    def once(reply):
        if is_reply(reply, 1, 3) and not lost:
            lost.append(reply)
            return []
        return [reply]

    result = federate(chosen, Network(chosen, Processes(), change=once))
    assert result.summary["skipped_rounds"] == 1
    assert result.entries == undisturbed.entries


def test_a_site_that_failed_in_a_round_gets_what_it_lacks_in_the_next(tmp_path):
    """Its process died before it could catch up: the next request, sent already, is not enough."""
    chosen, nodes = config(tmp_path, **CHANGES), Processes()

    def deaf(message, context):
        if trains(message) and message.metadata.group_id == "4" and context.node_id == 3:
            raise MemoryError
        return nodes(message, context)

    result = federate(chosen, Network(chosen, deaf))
    sites = {}
    for round_, _, site, *_ in result.rows["contributions"]:
        sites.setdefault(round_, []).append(site)
    assert sites == {k: ["0", "2"] if k == 4 else ["0", "1", "2"] for k in range(1, 7)}
    again = config(tmp_path, "again", **CHANGES)
    dropped = Network(again, change=lambda r: failed(r) if is_reply(r, 1, 4) else [r])
    assert federate(again, dropped).entries == result.entries


def test_a_site_that_forgot_costs_two_messages_more_and_is_two_rounds_ahead_again(tmp_path):
    """It is behind in both open rounds, and gets both anew: it does not lag for ever after."""
    chosen, nodes = config(tmp_path, **CHANGES | {"num_rounds": 12}), Processes()
    whole = federate(config(tmp_path, "whole", **CHANGES | {"num_rounds": 12}))

    def forget(run, round_):
        if round_ == 5:
            nodes.memories[3].clear()

    network = Network(chosen, nodes)
    result = federate(chosen, network, forget)
    assert result.entries == whole.entries
    requested = [m for m in filter(trains, network.sent) if m.metadata.dst_node_id == 3]
    assert len(requested) == 12 + 2
    behind = [
        reply for reply in network.received
        if is_reply(reply, 1) and isinstance(decode_reply(unpack(reply.content)[0]), Behind)
    ]  # fmt: skip
    assert len(behind) <= 2
    assert result.summary["refusals"] == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"staleness": 2}, "staleness: an integer from 0 to 1 expected, got 2"),
        ({"downlink": "dense"}, "staleness = 1 with downlink = dense"),
        ({"mode": "instruct", "guidance": "reuse"}, "staleness = 1 with guidance = reuse"),
        ({"mode": "fo", "codec": "topk", "error_feedback": True}, "with error-feedback = true"),
    ],
)
def test_what_cannot_be_one_behind_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **{"staleness": 1} | changes)


def test_a_replica_does_not_go_back_by_itself(tmp_path):
    chosen = config(tmp_path, **CHANGES)
    federate(chosen)
    host, node = ReplicaHost(chosen), {"partition-id": 0, "num-partitions": 3}
    with ledger_of(chosen) as ledger:
        entries = ledger.payloads(0, 3)
        run, digest, before = ledger.header("run"), ledger.digest(3), ledger.digest(2)
    request = Request(5, 1e-3, digest, run, b"c" * 16, entries)
    assert np.isfinite(host.train(node, request, None).differences).all()
    behind = host.train(node, Request(4, 1e-3, before, run, b"c" * 16), None)
    assert behind == Behind(3, 0)
    assert host._oracle.replica.digest() == digest
    assert Oracle.of(chosen).replica.round == 0
