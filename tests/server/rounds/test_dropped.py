"""Dense gradients leave the ledger when later snapshots are there, and nothing else does."""

import shutil
from contextlib import closing

import pytest
import torch
from fleet import config, federate

from dandelion.cli.ledger import verify
from server.ledger.ledger import Ledger
from server.ledger.snapshots import Snapshots, rebuild_each_
from server.rounds.catch_up import catch_up
from shared.base.errors import GapError, LedgerError
from shared.config.schema import Config
from shared.protocol.entry import Entry
from shared.replica.snapshot import load_snapshot_
from shared.training.oracle import Oracle


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Seven rounds of calibrate, snapshots at 2, 4 and 6: gradients 1 and 3 are dropped."""
    folder = tmp_path_factory.mktemp("dropped")
    c = config(folder, mode="calibrate", num_rounds=7, snapshot_interval=2)
    return c, federate(c)


@pytest.fixture
def ledger(run, tmp_path):
    folder = shutil.copytree(run[1].folder, tmp_path / "copy")
    with closing(Ledger.open(folder / "ledger.sqlite")) as result:
        yield result


def kinds(entries):
    return ["gone" if e.dropped else "gradient" if e.payload else "numbers" for e in entries]


def test_gradients_before_the_last_but_one_snapshot_are_dropped(run):
    expected = ["gone", "numbers", "gone", "numbers", "gradient", "numbers", "gradient"]
    assert kinds(run[1].entries) == expected
    assert len(run[1].entries[0].encode()) == 24 + 12 + 32


def test_a_late_joiner_gets_a_snapshot_and_the_digest_proves_it(run, ledger):
    c, result = run
    for choice in ("auto", "replay", "snapshot"):
        wanted = Config.from_run_config(c.to_run_config() | {"catch-up": choice})
        way = catch_up(wanted, ledger, Snapshots(ledger), 0, 7)
        replica = Oracle.of(c).replica
        load_snapshot_(replica, way.snapshot, ledger.header("run"))
        assert replica.round == 6
        replica.apply(Entry.decode(data) for data in way.entries)
        replica.check(ledger.digest(7))
        assert torch.equal(replica.model.flat, result.flat)


def test_without_a_snapshot_that_is_late_enough_there_is_no_way(run, ledger):
    for round_ in (6, 4):
        Snapshots(ledger).forget(round_)
    with pytest.raises(GapError, match="no snapshot of round 3, whose gradient was dropped"):
        catch_up(run[0], ledger, Snapshots(ledger), 0, 7)


def test_a_replica_refuses_a_round_whose_gradient_was_dropped(run):
    replica = Oracle.of(run[0]).replica
    with pytest.raises(GapError, match="gradient of round 1 was dropped: a snapshot of that round"):
        replica.apply(run[1].entries)
    assert replica.round == 0


def test_what_can_be_rebuilt_is_rebuilt_and_the_rest_said(run, ledger):
    replica = Oracle.of(run[0]).replica
    assert [round_ for round_, _ in rebuild_each_(replica, ledger, 7)] == [2, 4, 5, 6, 7]
    assert torch.equal(replica.model.flat, run[1].flat)
    with pytest.raises(GapError, match=r"round 3 cannot be rebuilt.*the next round that can is 4"):
        list(rebuild_each_(Oracle.of(run[0]).replica, ledger, 3))


def test_verify_says_which_rounds_snapshots_bridged(run, capsys):
    verify(run[1].folder)
    said = " ".join(capsys.readouterr().out.split())
    assert "5 rounds replayed, 6 digests equal" in said
    assert "2 rounds were not replayed but bridged by snapshots" in said
    assert "gradients up to round 3 were dropped" in said


def test_a_run_goes_on_after_gradients_were_dropped(run, ledger):
    folder = ledger.path.parent
    more = {"num-rounds": 8, "resume": str(folder)}
    result = federate(Config.from_run_config(run[0].to_run_config() | more))
    assert len(result.entries) == 8
    assert not result.refusals


def test_a_changed_digest_of_a_dropped_gradient_is_found(ledger):
    bad = bytearray(ledger.payloads(0, 1)[0])
    entry = Entry.decode(bytes(bad))
    object.__setattr__(entry, "dropped", bytes(32))
    ledger._database.write("UPDATE entries SET payload = ? WHERE round = 1", (entry.encode(),))
    with pytest.raises(LedgerError, match="entries, row 1: does not fit its chain"):
        Ledger.open(ledger.path)
