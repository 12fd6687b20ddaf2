"""The invariants I1 to I7 of the design, each over random federations."""

import copy
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from federation import config, federate, scratch
from hazards import Chaos, Crash, crash_at, crossed, go_on, through_crashes
from hypothesis import given, settings
from hypothesis import strategies as st

from client.site.replica_host import ReplicaHost
from server.ledger.verify import lasting_payload
from shared.base.errors import GapError
from shared.modes.mode import parameters_round
from shared.protocol.entry import Entry
from shared.protocol.messages import Request, encode_reply
from shared.training.oracle import Oracle

some, few = (settings(deadline=None, max_examples=count) for count in (10, 5))
sgd = st.fixed_dictionaries({"optimizer": st.just("sgd"), "momentum": st.sampled_from([0.0, 0.9])})
others = st.fixed_dictionaries(
    {"optimizer": st.sampled_from(["adam", "mudamw"]), "scope": st.just("regex:h.1|ln_f")}
)
shapes = st.fixed_dictionaries(
    {
        "queries": st.integers(1, 3),
        "local_steps": st.integers(1, 2),
        "seed_schedule": st.sampled_from(["shared", "independent"]),
        "num_clients": st.integers(1, 4),
        "clients_per_round": st.integers(0, 3),
        "catch_up": st.sampled_from(["auto", "replay", "snapshot"]),
        "snapshot_interval": st.integers(0, 2),
        "downlink": st.sampled_from(["replay", "replay", "dense"]),
        "seed": st.integers(0, 2**63 - 1),
        "zo_batch_size": st.just(1),
        "learning_rate": st.just(1e-3),
        "staleness": st.integers(0, 1),
        "directions": st.sampled_from(["rademacher", "lowrank"]),
    }
)


@st.composite
def federations(draw, **fixed):
    """Settings of a small run in any mode."""
    mode = draw(st.sampled_from(["zo", "zo", "zo", "fo", "calibrate", "instruct", "fedavg"]))
    result = draw(shapes) | draw(sgd | others)
    if result["directions"] == "lowrank":
        result["direction_rank"] = draw(st.integers(1, 2))
    if mode != "zo":
        codec = st.sampled_from(["float32", "bfloat16", "int8", "topk"])
        result |= {"codec": draw(codec), "bp_interval": 2, "bp_batch_size": 1}
    if mode == "fedavg":
        result |= {"optimizer": "sgd", "momentum": 0.0}
    elif mode != "zo":
        result |= {"local_steps": 1, "guidance": draw(st.sampled_from(["fresh", "reuse"]))}
    if result["staleness"]:
        result |= {"downlink": "replay", "guidance": "fresh"}
    return result | {"mode": mode} | fixed


class Follower:
    """Rebuilds the parameters of every round from base model and ledger, and compares."""

    def __init__(self, chosen):
        self.replica, self.rounds = Oracle.of(chosen).replica, []

    def __call__(self, run, round_):
        self.replica.apply(run.ledger.entry(k) for k in range(self.replica.round + 1, round_ + 1))
        mine, servers = self.replica, run.oracle.replica
        assert mine.round == servers.round == run.ledger.last_round
        assert torch.equal(mine.model.flat, servers.model.flat)
        assert run.ledger.digest(round_) == mine.digest()
        self.rounds.append(round_)


@given(federations())
@some
def test_i1_base_model_and_ledger_are_the_servers_parameters_at_every_round(changes):
    with scratch() as folder:
        chosen = config(folder, **changes)
        follower = Follower(chosen)
        federate(chosen, on_round=follower)
    assert follower.rounds == [0, 1, 2, 3]


THIRDS = [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2))]


@pytest.mark.parametrize("staleness", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", THIRDS)
def test_i1_holds_after_a_crash_at_any_point_that_writes(part, staleness):
    changes = {"num_rounds": 2, "num_clients": 2, "queries": 1, "zo_batch_size": 1, "momentum": 0.9}
    changes |= {"staleness": staleness}
    changes |= {"snapshot_interval": 1, "eval_interval": 1}
    with scratch() as folder:
        with crash_at(None) as written:
            expected = federate(config(folder, "whole", **changes))
        assert len(written) > 40
        for number in range(1 + part, len(written) + 1, len(THIRDS)):
            chosen = config(folder, f"crash {number}", **changes)
            with pytest.raises(Crash), crash_at(number):
                federate(chosen)
            result = go_on(chosen)
            assert (result.digest, result.entries) == (expected.digest, expected.entries)
            assert (
                result.summary["evaluation_loss_last"] == expected.summary["evaluation_loss_last"]
            )
            assert [row[:2] for row in result.rows["snapshots"]] == [
                row[:2] for row in expected.rows["snapshots"]
            ]


@given(federations(), st.lists(st.integers(1, 45), min_size=1, max_size=3))
@some
def test_i1_holds_after_crashes_in_a_row(changes, numbers):
    with scratch() as folder:
        expected = federate(config(folder, "whole", **changes))
        chosen = config(folder, "crashed", **changes)
        result = through_crashes(chosen, numbers)
    assert result.digest == expected.digest
    # of a dense gradient only the digest may be left, in one of them earlier than in the other
    assert [*map(lasting_payload, result.entries)] == [*map(lasting_payload, expected.entries)]


@given(federations(snapshot_interval=0))
@few
def test_i2_threads_and_chunks_change_no_bit(changes):
    with scratch() as folder:
        chosen = config(folder, **changes)
        result = federate(chosen)
    entries = [Entry.decode(data) for data in result.entries]
    digests = []
    try:
        for threads, chunk in ((1, 1 << 20), (2, 1 << 20), (1, 4096), (2, 10_240)):
            with pytest.MonkeyPatch.context() as patch:
                for module in ("shared.optimizers.gradient", "shared.optimizers.adam"):
                    patch.setattr(f"{module}.CHUNK", chunk)
                replica = Oracle.of(chosen).replica
                torch.set_num_threads(threads)
                replica.apply(entries)
                digests.append(replica.digest().hex())
    finally:
        torch.set_num_threads(1)
    assert digests == [result.digest] * 4


def asked(oracle, round_=1, entries=()):
    """A request as the server of a run at this oracle's round makes it."""
    return Request(round_, 1e-3, oracle.replica.digest(), b"r" * 16, b"c" * 16, entries)


def node(number, of):
    return {"partition-id": number, "num-partitions": of}


@given(federations())
@some
def test_i3_measuring_touches_no_parameter(changes):
    with scratch() as folder:
        host = ReplicaHost(config(folder, **changes))
    oracle, sites = host._oracle, changes["num_clients"]
    module, flat = oracle.language_model.module, oracle.replica.model.flat
    before = {name: (p.detach().clone(), p.data_ptr()) for name, p in module.named_parameters()}
    kept, state = flat.clone(), copy.deepcopy(dict(oracle.replica.optimizer.state()))
    for number in range(sites):
        host.train(node(number, sites), asked(oracle), None)
    assert torch.equal(flat, kept)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.data_ptr() == before[name][1]
    for name, tensor in oracle.replica.optimizer.state().items():
        assert torch.equal(tensor, state[name])


losses = st.sets(st.tuples(st.integers(1, 3), st.integers(0, 3)), max_size=4)


@given(federations(), losses, st.integers(0, 99))
@some
def test_i4_the_same_replies_in_any_order_make_the_same_entries(changes, lost, order):
    changes = changes | {"max_skipped_rounds": 1, "num_clients": 4, "clients_per_round": 0}
    lost = {(round_, site) for round_, site in lost if site}  # one site is always heard
    with scratch() as folder:
        plain, other = config(folder, "plain", **changes), config(folder, "other", **changes)
        expected = federate(plain, Chaos(plain, lost))
        result = federate(other, Chaos(other, lost, random.Random(order)))
    assert result.entries == expected.entries
    assert result.digest == expected.digest
    assert [row[:4] for row in result.rows["contributions"]] == [
        row[:4] for row in expected.rows["contributions"]
    ]


@given(federations(snapshot_interval=0), st.lists(st.integers(1, 3), max_size=8))
@some
def test_i5_an_entry_is_applied_once_and_never_before_its_time(changes, order):
    with scratch() as folder:
        chosen = config(folder, **changes)
        entries = [Entry.decode(data) for data in federate(chosen).entries]
    replica, straight = Oracle.of(chosen).replica, Oracle.of(chosen).replica
    for round_ in order:
        before, at = replica.digest(), replica.round
        if round_ > at + 1:
            with pytest.raises(GapError, match=f"round {at + 1} expected, got {round_}"):
                replica.apply([entries[round_ - 1]])
        else:
            replica.apply([entries[round_ - 1]])
        assert replica.round == max(at, round_ if round_ == at + 1 else at)
        assert (replica.digest() == before) == (replica.round == at)
    straight.apply(entries[: replica.round])
    assert torch.equal(replica.model.flat, straight.model.flat)


@given(federations(), losses, st.none() | st.integers(1, 99))
@some
def test_i6_every_byte_that_crosses_is_counted(changes, lost, order):
    with scratch() as folder:
        chosen = config(folder, **changes | {"max_skipped_rounds": 9})
        lost = {(round_, site) for round_, site in lost if site or changes["clients_per_round"]}
        network = Chaos(chosen, lost - {(k, 0) for k in (1, 2, 3)}, order and random.Random(order))
        rows = federate(chosen, network).rows
    counted = Counter()
    for _, _, _, direction, kind, payload, message in rows["traffic"]:
        counted[direction, kind, "payload"] += payload
        counted[direction, kind, "message"] += message
    assert counted == crossed(network)
    for place, direction in ((7, "up"), (8, "down")):
        total = sum(n for key, n in counted.items() if key[::2] == (direction, "payload"))
        assert sum(row[place] for row in rows["metrics"]) == total


@given(federations(), st.integers(1, 50))
@some
def test_i7_a_round_that_is_asked_for_again_gives_the_same_numbers(changes, round_):
    changes = changes | {"num_clients": 3}
    with scratch() as folder:
        chosen = config(folder, **changes)
    hosts = (
        ReplicaHost(chosen),
        ReplicaHost(chosen),
    )  # the second is a process that was started again
    for host in hosts:
        host._run = b"r" * 16
        host._oracle.replica.set_round(parameters_round(chosen, round_))
    request = asked(hosts[0]._oracle, round_)
    first, again, other, later = (
        encode_reply(replace(host.train(node(number, 3), request, None), seconds=0.0))
        for host, number in ((hosts[0], 0), (hosts[0], 0), (hosts[0], 1), (hosts[1], 0))
    )
    assert first == again == later != other
