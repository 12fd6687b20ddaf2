"""A server that follows its ledger lazily makes the same run, and still proves every round."""

import pytest
from federation import Network, altered, config, federate, is_reply, ledger_of, select
from hazards import Crash, crash_at, go_on

from dandelion.cli.ledger import verify
from server.ledger.run_folder import open_run
from shared.base.errors import ConfigError, DivergedError

RUN = {"num_rounds": 7, "eval_interval": 4, "snapshot_interval": 0, "num_clients": 3}


def lazy(folder, name="lazy", **changes):
    return config(folder, name, server_replica="lazy", **RUN | changes)


@pytest.fixture
def applied(monkeypatch):
    """Rounds that the server's replica took, pass by pass."""
    from shared.replica.replica import Replica

    passes, batches = [], Replica._batch

    def noted(self, entries):
        for batch in batches(self, entries):
            passes.append((id(self), [entry.round for entry in batch]))
            yield batch

    monkeypatch.setattr(Replica, "_batch", noted)
    return passes


def of_server(run, passes):
    return [rounds for owner, rounds in passes if owner == id(run.oracle.replica)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adam", "scope": "regex:ln_f"},
        {"mode": "calibrate", "bp_interval": 3, "bp_batch_size": 1},
        {"mode": "instruct", "guidance": "reuse", "bp_interval": 3, "bp_batch_size": 1},
        {"downlink": "dense"},
        {"snapshot_interval": 2, "catch_up": "snapshot"},
    ],
    ids=str,
)
def test_a_lazy_server_makes_the_run_of_an_eager_one(tmp_path, changes):
    eager, result = (
        federate(config(tmp_path, kind, server_replica=kind, **RUN | changes))
        for kind in ("eager", "lazy")
    )
    assert result.digest == eager.digest
    assert result.entries == eager.entries
    with ledger_of(eager.config) as one, ledger_of(result.config) as other:
        for table in ("digests", "evaluations"):
            assert select(one, f"SELECT * FROM {table}") == select(other, f"SELECT * FROM {table}")
    verify(tmp_path / "lazy")


def test_parameters_are_followed_only_where_they_are_needed(tmp_path, applied):
    chosen, servers = lazy(tmp_path), []
    federate(chosen, on_round=lambda run, round_: servers.append(run))
    assert of_server(servers[0], applied) == [[1, 2, 3, 4], [5, 6, 7]]


def test_a_dense_round_is_followed_at_once(tmp_path, applied):
    servers = []
    federate(
        lazy(tmp_path, mode="calibrate", bp_interval=3, bp_batch_size=1, eval_interval=0),
        on_round=lambda run, round_: servers.append(run),
    )
    assert of_server(servers[0], applied) == [[1], [2, 3], [4], [5, 6], [7]]


def test_a_site_that_differs_is_refused_in_that_round_and_brought_back(tmp_path):
    def differ(reply):
        if is_reply(reply, site=1, round_=3):
            return [altered(reply, lambda m: type(m)(**vars(m) | {"digest": b"x" * 16}))]
        return [reply]

    chosen = lazy(tmp_path)
    result = federate(chosen, Network(chosen, change=differ))
    refusals = [(row[1], row[2], row[3]) for row in result.rows["refusals"]]
    assert refusals == [(3, "1", "wrong digest")]
    assert len(result.rows["contributions"]) == 7 * 3 - 1
    verify(tmp_path / "lazy")


def test_sites_that_all_differ_alike_stop_the_run_when_it_is_proven(tmp_path):
    def lie(reply):
        if is_reply(reply, round_=3):
            return [altered(reply, lambda m: type(m)(**vars(m) | {"digest": b"x" * 16}))]
        return [reply]

    chosen = lazy(tmp_path)
    with pytest.raises(DivergedError, match=r"round 2: digest 7878\w* expected"):
        federate(chosen, Network(chosen, change=lie))
    with pytest.raises(DivergedError, match="round 2"):
        go_on(chosen)
    with pytest.raises(DivergedError, match="round 2"):
        verify(tmp_path / "lazy")


@pytest.mark.slow
def test_a_lazy_run_goes_on_after_a_crash_at_any_point(tmp_path):
    changes = {"num_rounds": 3, "num_clients": 1, "queries": 1, "zo_batch_size": 1}
    changes |= {"eval_interval": 2, "snapshot_interval": 2}
    with crash_at(None) as written:
        expected = federate(lazy(tmp_path, "whole", **changes))
    for number in range(1, len(written) + 1):
        chosen = lazy(tmp_path, f"crash {number}", **changes)
        with pytest.raises(Crash), crash_at(number):
            federate(chosen)
        result = go_on(chosen)
        assert (result.digest, result.entries) == (expected.digest, expected.entries)
        with ledger_of(chosen) as ledger:
            assert [row[0] for row in select(ledger, "SELECT round FROM digests")] == [*range(4)]


def test_a_lazy_run_may_go_on_as_an_eager_one(tmp_path):
    chosen = lazy(tmp_path, num_rounds=3)
    federate(chosen)
    keys = chosen.to_run_config() | {"resume": str(tmp_path / "lazy"), "server-replica": "eager"}
    with open_run(type(chosen).from_run_config(keys)) as run:
        assert run.oracle.replica.digest() == run.ledger.digest(3)


def test_a_lazy_server_cannot_ask_one_round_ahead(tmp_path):
    with pytest.raises(ConfigError, match="staleness = 1 with server-replica = lazy"):
        lazy(tmp_path, staleness=1)


def test_an_unknown_way_to_follow_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="server-replica 'never'; known: eager, lazy"):
        config(tmp_path, server_replica="never")
