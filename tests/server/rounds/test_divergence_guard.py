"""A run that diverges goes back and goes on at a lower rate, and its record still tells it all."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
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
    scratch,
)
from flwr.app import MessageType
from hazards import Crash, Cut, crash_at, crossed, go_on, through_crashes
from hypothesis import given, settings
from hypothesis import strategies as st

from dandelion.cli.ledger import replay, verify
from server.ledger.ledger import Ledger
from server.ledger.lineage import Lineage, entries_between
from server.ledger.run_folder import open_run
from server.ledger.snapshots import Snapshots, rebuild_, rebuild_each_
from server.rounds.divergence_guard import WINDOW, RoundLoss, judge_losses, newest_sound
from server.run import train
from shared.base.errors import ConfigError, GapError, LedgerError, StalledError, WireError
from shared.modes.mode import parameters_round
from shared.protocol.entry import Entry
from shared.protocol.flower_records import unpack
from shared.protocol.messages import decode_request
from shared.training.oracle import Oracle

ABSURD = {"learning_rate": 1.0, "num_rounds": 50, "snapshot_interval": 3, "queries": 8}
some = settings(deadline=None, max_examples=3)


@pytest.fixture(scope="module", params=[0, 1], ids=["at once", "one behind"])
def tamed(request, tmp_path_factory):
    """A run whose rate is a hundred times too high, and what it came to."""
    chosen = config(tmp_path_factory.mktemp("tamed"), **ABSURD, staleness=request.param)
    return chosen, federate(chosen)


def trains(message):
    return message.metadata.message_type == MessageType.TRAIN


def rewinds(result):
    return [(at, to) for at, to, _, _ in result.summary["rewinds"]]


def test_a_run_at_an_absurd_rate_goes_back_and_ends_well(tamed):
    _, result = tamed
    assert len(rewinds(result)) >= 2
    assert result.summary["rounds"] == 50
    assert result.summary["evaluation_loss_last"] < result.summary["evaluation_loss_first"]
    scales = [scale for _, _, scale, _ in result.summary["rewinds"]]
    assert scales == pytest.approx([0.3 ** (k + 1) for k in range(len(scales))])


def test_without_the_guard_the_same_run_ends_badly(tmp_path):
    chosen = config(tmp_path, **ABSURD | {"guard_rewinds": 0, "max_skipped_rounds": 2})
    with pytest.raises(StalledError):
        federate(chosen)


def test_rates_after_a_rewind_are_lowered_and_stand_in_the_entries(tamed):
    _, result = tamed
    entries, scale = [Entry.decode(data) for data in result.entries], 1.0
    for entry in entries:
        if entry.back_to is None:
            assert entry.learning_rate == scale * 1.0
        else:
            scale = entry.learning_rate
    assert [(e.round, e.back_to) for e in entries if e.undoes] == rewinds(result)


def test_no_round_is_measured_at_what_was_undone(tamed):
    """Each is where the run, as it stood then, still went through."""
    chosen, result = tamed
    entries = [Entry.decode(data) for data in result.entries]
    for entry in entries:
        if entry.back_to is None:
            assert parameters_round(chosen, entry.round) in Lineage.of(rewinds(result), entry.round)
    pauses = [e.round for e in entries if e.back_to is not None and not e.undoes]
    assert pauses == [at + 1 for at, _ in rewinds(result)] * chosen.federation.staleness


def test_every_digest_is_met_whether_undone_rounds_are_rebuilt_or_not(tamed):
    chosen, result = tamed
    with ledger_of(chosen) as ledger:
        replica, reached = Oracle.of(chosen).replica, []
        for round_, digest in rebuild_each_(replica, ledger, 50):
            assert digest == ledger.digest(round_)
            reached.append(round_)
        assert torch.equal(replica.model.flat, result.flat)
        assert reached == [*range(1, 51)]
        replica = Oracle.of(chosen).replica
        rebuild_(replica, ledger, 50)
        assert torch.equal(replica.model.flat, result.flat)
        dead = rewinds(result)[0][0] - 1  # a round that was undone can still be looked at
        replica = Oracle.of(chosen).replica
        replica.apply(Entry.decode(data) for data in entries_between(ledger, 0, dead))
        replica.check(ledger.digest(dead))
        replica = Oracle.of(chosen).replica
        assert Snapshots(ledger).restore_(replica, ledger.header("run"), 50) == []
        replica.check(ledger.digest(50))


def test_a_row_that_is_missing_of_an_undone_round_is_named(tamed, tmp_path):
    chosen, result = tamed
    undone = rewinds(result)[0][0] - 1
    path = shutil.copy(folder_of(chosen) / "ledger.sqlite", tmp_path / "copy.sqlite")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DELETE FROM metrics WHERE round = ?", (undone,))
    with pytest.raises(LedgerError, match=f"metrics: round {undone} is missing"):
        Ledger.open(path)


def test_the_command_line_verifies_and_replays_it(tamed, tmp_path, capsys):
    chosen, result = tamed
    verify(folder_of(chosen))
    out = capsys.readouterr().out
    assert f"50 rounds replayed, 51 digests equal; digest {result.digest}" in out
    replay(folder_of(chosen), 50, tmp_path / "model")
    assert f"round 50, digest {result.digest}" in capsys.readouterr().out


@pytest.mark.parametrize("catch_up", ["auto", "replay", "snapshot"])
def test_sites_with_memories_of_their_own_come_along_however_long_they_were_away(
    tamed, tmp_path, catch_up
):
    changes = ABSURD | {"clients_per_round": 1, "catch_up": catch_up, "num_rounds": 20}
    chosen = config(tmp_path, **changes, staleness=tamed[0].federation.staleness)
    nodes = Processes()
    network = Network(chosen, nodes)
    result = federate(chosen, network)
    assert len(rewinds(result)) >= 1
    assert not result.summary["refusals"].get("diverged")
    counted = {}
    for _, _, _, way_, kind, payload, message in result.rows["traffic"]:
        for unit, size in (("payload", payload), ("message", message)):
            counted[way_, kind, unit] = counted.get((way_, kind, unit), 0) + size
    assert counted == crossed(network)
    with ledger_of(chosen) as ledger:
        for node in nodes.memories:  # wherever a site stopped, it has that round's bits
            replica = nodes.host(node)._oracle.replica
            if replica.round:
                replica.check(ledger.digest(replica.round))


def test_a_lazy_server_goes_back_as_an_eager_one_does(tamed, tmp_path):
    if tamed[0].federation.staleness:
        pytest.skip("staleness needs the eager server")
    result = federate(config(tmp_path, server_replica="lazy", eval_interval=4, **ABSURD))
    assert rewinds(result) == rewinds(tamed[1])
    assert (result.digest, result.entries) == (tamed[1].digest, tamed[1].entries)


def test_a_replica_that_is_past_the_round_does_not_go_back_by_itself(tamed):
    chosen, result = tamed
    at, back_to = rewinds(result)[0]
    replica = Oracle.of(chosen).replica
    entries = [Entry.decode(data) for data in result.entries]
    replica.apply(entries[: at - 1])
    before = replica.digest()
    with pytest.raises(GapError, match=f"got {at}, which follows {back_to}"):
        replica.apply([entries[at - 1]])
    assert (replica.round, replica.digest()) == (at - 1, before)


EVERY = [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 12))]


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("part", EVERY)
def test_a_crash_at_any_write_leaves_a_run_that_decides_alike(part, staleness):
    changes = {"learning_rate": 1e5, "num_rounds": 4 + 3 * staleness, "num_clients": 2}
    changes |= {"snapshot_interval": 1, "eval_interval": 0, "zo_batch_size": 1, "queries": 1}
    changes |= {"staleness": staleness}
    with scratch() as folder:
        with crash_at(None) as written:
            expected = federate(config(folder, "whole", **changes))
        assert rewinds(expected)
        assert len(written) > 40
        for number in range(1 + part, len(written) + 1, 12):
            chosen = config(folder, f"crash {number}", **changes)
            with pytest.raises(Crash), crash_at(number):
                federate(chosen)
            result = go_on(chosen)
            assert (result.digest, result.entries) == (expected.digest, expected.entries)
            assert result.summary["rewinds"] == expected.summary["rewinds"]


@pytest.mark.slow
@given(
    st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["zo", "zo", "fo", "calibrate", "instruct", "fedavg"]),
            "seed": st.integers(0, 2**63 - 1),
            "snapshot_interval": st.integers(0, 3),
            "clients_per_round": st.integers(0, 2),
            "codec": st.sampled_from(["float32", "int8"]),
            "momentum": st.sampled_from([0.0, 0.9]),
            "downlink": st.sampled_from(["replay", "replay", "dense"]),
            "staleness": st.integers(0, 1),
        }
    ),
    st.lists(st.integers(10, 90), min_size=1, max_size=2),
)
@some
def test_any_mode_that_is_cut_off_while_it_diverges_ends_with_the_same_bits(changes, numbers):
    changes |= {"learning_rate": 1e4, "num_rounds": 6, "bp_interval": 2, "zo_batch_size": 1}
    with scratch() as folder:
        if changes["mode"] == "fedavg":
            changes["momentum"] = 0.0
        if changes["staleness"]:
            changes |= {"downlink": "replay", "num_rounds": 8}
        expected = federate(config(folder, "whole", **changes))
        chosen = config(folder, "cut", **changes)
        result = through_crashes(chosen, numbers)
        assert result.digest == expected.digest
        assert result.summary["rewinds"] == expected.summary["rewinds"]
        with ledger_of(chosen) as ledger:
            replica = Oracle.of(chosen).replica
            for round_, digest in rebuild_each_(replica, ledger, chosen.training.rounds):
                assert digest == ledger.digest(round_)
            assert replica.digest().hex() == expected.digest


def test_a_snapshot_that_was_lost_is_done_without(tmp_path):
    def lose(run, round_):
        for path in (run.folder / "snapshots").glob("*"):
            path.unlink()

    changes = {"learning_rate": 0.3, "num_rounds": 25, "snapshot_interval": 1, "queries": 1}
    whole = federate(config(tmp_path, "whole", **changes))
    assert any(to > 0 for _, to in rewinds(whole))
    result = federate(config(tmp_path, "lost", **changes), on_round=lose)
    assert result.summary["rewinds"][0] == whole.summary["rewinds"][0]
    assert result.digest == whole.digest


def test_it_gives_up_in_the_end_and_says_what_to_do(tmp_path):
    chosen = config(tmp_path, **ABSURD | {"learning_rate": 1e7, "guard_rewinds": 2})
    with pytest.raises(StalledError, match=r"went back 2 times .* 'dandelion preflight' suggests"):
        federate(chosen)
    with ledger_of(chosen) as ledger:
        assert len(ledger.rewinds()) == 2
    result = federate(resumed(chosen, guard_rewinds=20, guard_rate_factor=0.01, num_rounds=12))
    assert len(rewinds(result)) > 2
    assert result.summary["rounds"] == 12


@pytest.mark.parametrize("staleness", [0, 1])
def test_most_sites_without_finite_numbers_are_divergence_also_where_one_is_left(
    tmp_path, staleness
):
    def burst(reply):
        if is_reply(reply, 0) or is_reply(reply, 1):
            return [altered(reply, lambda m: replace(m, loss=np.nan) if m.round == 5 else m)]
        return [reply]

    chosen = config(tmp_path, num_rounds=12, snapshot_interval=1, staleness=staleness)
    result = federate(chosen, Network(chosen, change=burst))
    assert result.summary["skipped_rounds"] == 0
    assert [at for at, *_ in result.summary["rewinds"]] == [6]
    assert "2 of 3 sites measured no finite losses" in result.summary["rewinds"][0][3]


@pytest.mark.parametrize("staleness", [0, 1])
def test_sites_that_never_had_finite_numbers_undo_nothing(tmp_path, staleness):
    def broken(reply):
        if is_reply(reply, 0) or is_reply(reply, 1):
            return [altered(reply, lambda m: replace(m, loss=np.nan))]
        return [reply]

    chosen = config(tmp_path, num_rounds=12, staleness=staleness)
    result = federate(chosen, Network(chosen, change=broken))
    assert result.summary["rewinds"] == []
    assert {row[2] for row in result.rows["contributions"]} == {"2"}


def test_metrics_and_traffic_have_the_same_bytes_also_of_a_rewind_after_a_skip(tmp_path):
    chosen = config(tmp_path, learning_rate=1e5, num_rounds=8, snapshot_interval=1)
    with open_run(chosen) as run:
        train(Network(chosen), run, lambda report, round_: None)
        assert run.ledger.rewinds()
        assert run.ledger.count_skips()
        metrics = run.ledger.metrics()
        assert {t.round for t in run.ledger.traffic()} <= {0, *(m.round for m in metrics)}
        for m in metrics:
            assert m.bytes_up == run.ledger.payload_bytes(m.round, "up")
            assert m.bytes_down == run.ledger.payload_bytes(m.round, "down")


@pytest.mark.parametrize("rounds", [5, 6, 12])
def test_bytes_of_a_round_that_was_forsaken_are_in_the_ledger(tmp_path, rounds):
    """Also where the run ends with the rewind, or with the pause."""

    def burst(reply):
        if is_reply(reply):
            return [altered(reply, lambda m: replace(m, loss=np.nan) if m.round == 4 else m)]
        return [reply]

    chosen = config(tmp_path, num_rounds=rounds, snapshot_interval=1, staleness=1, min_clients=3)
    network = Network(chosen, change=burst)
    result = federate(chosen, network)
    assert [at for at, *_ in result.summary["rewinds"]] == [4]
    counted = {}
    for _, _, _, way_, kind, payload, message in result.rows["traffic"]:
        for unit, size in (("payload", payload), ("message", message)):
            counted[way_, kind, unit] = counted.get((way_, kind, unit), 0) + size
    assert counted == crossed(network)
    assert len(list(filter(trains, network.received))) == len(list(filter(trains, network.sent)))


def test_rates_of_sites_own_steps_are_lowered_too(tmp_path):
    chosen = config(tmp_path, **ABSURD | {"local_steps": 2, "local_learning_rate": 0.01})
    network = Network(chosen)
    result = federate(chosen, network)
    requested = [decode_request(unpack(m.content)[0]) for m in network.sent if trains(m)]
    rates = {}
    for request in requested:
        rates.setdefault(request.round, request.learning_rate)
    scales = {at: scale for at, _, scale, _ in result.summary["rewinds"]}
    assert scales
    scale = 1.0
    for round_ in range(1, 51):
        scale = scales.get(round_, scale)
        if round_ in rates and round_ not in scales:
            assert rates[round_] == pytest.approx(0.01 * scale)


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_snapshot_that_a_rewind_went_back_to_can_be_lost(tmp_path, staleness):
    """Gradients before it were dropped; the rewind has a snapshot of its own."""
    reached = []

    def lose(run, round_):
        if rewound := run.ledger.rewinds():
            assert 0 < rewound[0].back_to < 6
            (path,) = (run.folder / "snapshots").glob(f"*{rewound[0].back_to}.safetensors")
            path.write_bytes(b"damaged")
            reached.append(round_)
            raise Cut

    def burst(reply):
        if is_reply(reply):
            bad = range(5, 9)
            return [altered(reply, lambda m: replace(m, loss=1e3) if m.round in bad else m)]
        return [reply]

    changes = {"mode": "fo", "num_rounds": 14, "snapshot_interval": 2, "staleness": staleness}
    chosen = config(tmp_path, **changes)
    with pytest.raises(Cut):
        federate(chosen, Network(chosen, change=burst), lose)
    assert reached == [9]
    again = resumed(chosen)
    assert federate(again, Network(again, Processes())).summary["rounds"] == 14


def test_one_site_that_lies_about_its_loss_undoes_nothing(tmp_path):
    def lie(reply):
        return [altered(reply, lambda m: replace(m, loss=1e8)) if is_reply(reply, 1) else reply]

    def nothing_finite(reply):
        return [altered(reply, lambda m: replace(m, loss=np.nan)) if is_reply(reply, 1) else reply]

    for how in (lie, nothing_finite):
        chosen = config(tmp_path, how.__name__, num_rounds=8)
        assert federate(chosen, Network(chosen, change=how)).summary["rewinds"] == []


def test_a_site_owes_nothing_after_a_way_that_was_left(tmp_path):
    changes = {"mode": "fo", "codec": "topk", "error_feedback": True, "num_rounds": 8}
    chosen = config(tmp_path, learning_rate=1e4, **changes)
    nodes = Processes()
    result = federate(chosen, Network(chosen, nodes))
    at = rewinds(result)[-1][0]
    host = nodes.host(2)
    sender = host._sites["0"]._sender
    assert at < 8
    assert sender is None or torch.isfinite(sender._after).all()


def test_a_lineage_is_what_a_replica_goes_through():
    line = Lineage.of([(6, 2), (9, 7), (12, 4)], 11)
    assert [k for k in range(13) if k in line] == [0, 1, 2, 6, 7, 9, 10, 11]
    line = Lineage.of([(6, 2), (9, 7), (12, 2)], 13)
    assert [k for k in range(15) if k in line] == [0, 1, 2, 12, 13]
    assert [k for k in range(9) if k in Lineage.of([(6, 2), (9, 7)], 5)] == [0, 1, 2, 3, 4, 5]


@given(st.data())
def test_any_lineage_is_a_chain_of_what_follows_what(data):
    follows = {}
    for round_ in range(1, 30):
        goes_back = data.draw(st.booleans()) and round_ > 1
        follows[round_] = data.draw(st.integers(0, round_ - 2)) if goes_back else round_ - 1
    pairs = [(k, to) for k, to in follows.items() if to != k - 1]
    for to in (7, 29):
        expected, at = {0}, to
        while at:
            expected.add(at)
            at = follows[at]
        assert {k for k in range(31) if k in Lineage.of(pairs, to)} == expected


def test_a_rewind_is_24_bytes_and_a_checksum_and_reads_back():
    entry = Entry(7, 0.25, (), back_to=3)
    assert len(entry.encode()) == 24
    assert Entry.decode(entry.encode()) == entry
    assert (entry.follows, Entry(7, 0.25, ()).follows) == (3, 6)
    with pytest.raises(WireError, match="a rewind to an earlier round expected, got 7"):
        Entry.decode(Entry(7, 0.25, (), back_to=7).encode())


def alarms(losses, tolerance=0.2):
    """Places of a series at which the guard would act."""
    return [
        k for k in range(1, len(losses) + 1) if judge_losses(losses[max(0, k - 200) : k], tolerance)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_noise_raises_no_alarm(seed):
    chance = np.random.default_rng(seed)
    rounds = np.arange(600)
    language = 3.3 + 2.2 * np.exp(-rounds / 100) + 0.15 * chance.standard_normal(600)
    single = 3.5 + 0.6 * chance.standard_normal(600)  # one small batch a round
    spiky = 0.05 + 0.9 * (chance.random(600) < 0.1) + 0.65 * np.exp(-rounds / 30)
    heavy = 2.0 + 0.1 * chance.standard_t(3, 600)
    for series in (language, single, spiky, heavy):
        assert alarms(series.tolist()) == []


def test_small_batches_of_the_first_rounds_raise_no_alarm():
    """Two sites, two examples each: one easy batch, and then usual ones."""
    rounds = [RoundLoss.of(losses) for losses in ([0.1, 0.01], [2.6, 1.3], [2.6, 0.1])]
    losses = [each.middle for each in rounds]
    noise = np.median([each.error for each in rounds[:-1]])
    assert judge_losses(losses, 0.2) != ""
    assert judge_losses(losses, 0.2, noise) == ""


def test_the_error_of_a_rounds_loss_is_that_of_its_median_and_no_one_sites_to_make():
    chance = np.random.default_rng(1)
    many = [RoundLoss.of(chance.normal(3.0, 0.5, 25).tolist()) for _ in range(400)]
    spread = np.std([each.middle for each in many])
    assert np.mean([each.error for each in many]) == pytest.approx(spread, rel=0.1)
    honest = [1.0, 1.1, 0.9, 1.05, 0.95]
    assert RoundLoss.of([*honest, 1e6]).error < 2 * RoundLoss.of(honest).error
    assert RoundLoss.of([3.0]).error == 0.0


@pytest.mark.parametrize("start", [0, 30, 300])
def test_a_loss_that_climbs_raises_one_and_what_was_well_lies_before(start):
    chance = np.random.default_rng(start)
    calm = 4.0 + 0.1 * chance.standard_normal(start + 1)
    climb = 4.0 * 1.25 ** np.arange(1, 12)
    series = [*calm.tolist(), *climb.tolist()]
    first = alarms(series)[0]
    assert start < first - 1 <= start + WINDOW
    assert newest_sound(series[:first], 0.2) <= start + 2


@pytest.mark.parametrize("key", ["guard-rate-factor", "guard-tolerance"])
def test_a_guard_that_could_do_nothing_is_refused(tmp_path, key):
    with pytest.raises(ConfigError, match=key):
        config(tmp_path, **{key.replace("-", "_"): 0.0})
    if key == "guard-rate-factor":
        with pytest.raises(ConfigError, match=key):
            config(tmp_path, guard_rate_factor=1.0)
