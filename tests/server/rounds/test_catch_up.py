"""A site gets what it lacks, in as few bytes as it was asked to be, and then has the same bits."""

from contextlib import closing

import numpy as np
import pytest
from federation import Network, Processes, config, federate, is_reply

from server.ledger.ledger import Ledger
from server.ledger.records import Metrics
from server.ledger.snapshots import Snapshots
from server.rounds.catch_up import ENTRY_OVERHEAD, catch_up
from shared.protocol.entry import Entry, SlotDifferences
from shared.protocol.flower_records import unpack
from shared.protocol.messages import decode_request

ROUNDS, SNAPSHOTS = 12, {4: 700, 8: 700}  # round to bytes; an entry takes 132
REQUEST, ENTRY = 72, 40  # bytes of a request without entries, and of each entry of two queries


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catchup")
    with closing(Ledger.create(folder / "ledger.sqlite", {"run": b"r"})) as ledger:
        (folder / "snapshots").mkdir()
        for round_ in range(1, ROUNDS + 1):
            numbers = np.full(26, round_, np.float32)
            ledger.commit(
                Entry(round_, 0.1, (SlotDifferences(0, numbers),)), [], [], metrics(round_)
            )
        for round_, size in SNAPSHOTS.items():
            keep(ledger, round_, bytes([round_]) * size)
        yield ledger


def metrics(round_):
    return Metrics(round_, "", 1.0, 1.0, 0.1, 1, 1, 1, 1, 1.0)


def keep(ledger, round_, data):
    import xxhash

    path = ledger.path.parent / "snapshots" / str(round_)
    path.write_bytes(data)
    ledger.record_snapshot(round_, path.name, len(data), xxhash.xxh3_128_digest(data))


def way(ledger, mode, site_round, to=ROUNDS):
    chosen = config(ledger.path.parent, catch_up=mode)
    return catch_up(chosen, ledger, Snapshots(ledger), site_round, to)


def size(sent):
    return sum(len(e) + ENTRY_OVERHEAD for e in sent.entries) + len(sent.snapshot or b"")


def rounds(sent):
    return [Entry.decode(data).round for data in sent.entries]


@pytest.mark.parametrize("site_round", [0, 3, 8, 11, 12])
def test_replay_sends_the_missed_entries_whatever_they_cost(ledger, site_round):
    result = way(ledger, "replay", site_round)
    assert rounds(result) == [*range(site_round + 1, ROUNDS + 1)]
    assert (result.snapshot, result.reset) == (None, False)


@pytest.mark.parametrize(("site_round", "start"), [(None, 8), (0, 8), (7, 8), (8, 8), (11, 11)])
def test_snapshot_sends_the_newest_that_the_site_has_not_passed(ledger, site_round, start):
    result = way(ledger, "snapshot", site_round)
    assert rounds(result) == [*range(start + 1, ROUNDS + 1)]
    used = start != site_round
    assert (result.snapshot, result.reset) == ((b"\x08" * 700, True) if used else (None, False))


@pytest.mark.parametrize("to", [4, 7, 8, 12])
@pytest.mark.parametrize("site_round", [None, 0, 1, 2, 3, 4, 6, 7, 8, 11, 99])
def test_auto_sends_whichever_is_fewer_bytes(ledger, site_round, to):
    replay, snapshot = (way(ledger, mode, site_round, to) for mode in ("replay", "snapshot"))
    result = way(ledger, "auto", site_round, to)
    assert size(result) == min(size(replay), size(snapshot))
    assert result in (replay, snapshot)


def test_a_site_without_a_usable_replica_starts_anew(ledger):
    for site_round in (None, ROUNDS + 1):
        result = way(ledger, "replay", site_round)
        assert (rounds(result), result.reset) == ([*range(1, ROUNDS + 1)], True)


def test_without_a_snapshot_replay_is_the_only_way(ledger):
    assert way(ledger, "snapshot", 0, to=3) == way(ledger, "replay", 0, to=3)


class Late(Network):
    """Site 2 is there from its fourth round on."""

    def get_node_ids(self):
        here = list(super().get_node_ids())
        return here if len(self.sent) >= 8 else here[:2]


def sent_to(result, site, kind=None):
    """Payload bytes of each request to a site."""
    return [
        row[5] for row in result.rows["traffic"]
        if row[2:4] == (site, "down") and row[4] in ((kind,) if kind else ("scalars", "snapshot"))
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["replay", "snapshot", "auto"])
def test_a_newcomer_has_the_servers_bits_in_its_first_round(tmp_path, mode):
    chosen = config(tmp_path, num_rounds=6, catch_up=mode, snapshot_interval=2)
    nodes = Processes()
    network = Late(chosen, nodes)
    result = federate(chosen, network)
    assert [row[0] for row in result.rows["contributions"] if row[2] == "2"] == [4, 5, 6]
    first, *others = sent_to(result, "2")
    assert first > 600_000 if mode == "snapshot" else first == REQUEST + 3 * ENTRY
    assert others == [REQUEST + ENTRY] * 2 or mode == "snapshot"
    assert not result.summary["refusals"]
    replica = nodes.host(4)._oracle.replica
    replica.apply([Entry.decode(result.entries[-1])])
    assert (replica.round, replica.digest().hex()) == (6, result.digest)


def test_a_site_that_missed_rounds_gets_those(tmp_path):
    chosen = config(tmp_path, num_rounds=5)
    deaf = lambda r: [] if is_reply(r, 1, 2) or is_reply(r, 1, 3) else [r]  # noqa: E731
    result = federate(chosen, Network(chosen, Processes(), deaf))
    entries = [(size - REQUEST) // ENTRY for size in sent_to(result, "1")]
    assert entries == [0, 1, 2, 3, 1]  # the server cannot know that it was only the reply
    assert result.summary["refusals"] == {"no answer": 2}


@pytest.mark.parametrize("interval", [0, 2])
def test_a_process_that_forgot_everything_catches_up_within_the_round(tmp_path, interval):
    changes = {"num_rounds": 5, "snapshot_interval": interval, "catch_up": "snapshot"}
    chosen, nodes = config(tmp_path, **changes), Processes()
    result = federate(
        chosen,
        Network(chosen, nodes),
        lambda run, round_: nodes.memories.pop(3) if round_ == 3 else None,
    )
    assert result.digest == federate(config(tmp_path, "expected", **changes)).digest
    assert not result.summary["refusals"]  # to be behind is no fault
    again = [row[4] for row in result.rows["traffic"] if row[1:4] == (4, "1", "down")]
    assert again == ["scalars", "snapshot" if interval else "scalars"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_dense_downlink_gives_the_same_bits_for_more_bytes(tmp_path, optimizer):
    changes = {"optimizer": optimizer, "learning_rate": 1e-3}
    dense, replay = config(tmp_path, downlink="dense", **changes), config(tmp_path, "x", **changes)
    result, expected = federate(dense), federate(replay)
    assert result.entries == expected.entries
    assert result.digest == expected.digest
    least = 4 * result.summary["parameters"] * (3 if optimizer == "adam" else 1)
    assert all(payload > least for payload in sent_to(result, "1", "snapshot"))
    assert len(sent_to(result, "1", "snapshot")) == 3
    assert not sent_to(result, "1", "scalars")


def test_a_request_holds_what_the_strategy_says_it_holds(tmp_path):
    chosen = config(tmp_path)
    network = Network(chosen)
    result = federate(chosen, network)
    requests = [m for m in network.sent if m.metadata.group_id == "3" and len(m.content) == 1]
    for message in requests:
        request = decode_request(unpack(message.content)[0])
        assert (request.round, request.entries) == (3, (result.entries[1],))
        assert request.learning_rate == chosen.optimizer.learning_rate
