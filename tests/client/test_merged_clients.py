"""Clients whose batches are merged measure what they measure one by one, within rounding."""

import numpy as np
import pytest
from federation import Network, config, federate, is_reply
from flwr.app import RecordDict

from client.site import merged_clients
from dandelion.engines.local import contexts_of, merge_requests
from shared.base.errors import ConfigError
from shared.training.oracle import Oracle

SITES = 5


class Merging(Network):
    """The local engine's grid as ``merge-clients`` makes it, with a memory."""

    def __init__(self, config, **more):
        super().__init__(config, **more)
        self._before = merge_requests(contexts_of(config))


def numbers(outcome):
    """What each site sent in each round: loss, then differences."""
    return {
        (row[0], row[2]): (row[4], np.frombuffer(row[6], np.float32))
        for row in outcome.rows["contributions"]
    }


@pytest.fixture
def passes(monkeypatch):
    """Rows of each forward pass that measures several examples apart."""
    rows, losses = [], Oracle.losses

    def counted(self, blocks):
        rows.append(len(blocks))
        return losses(self, blocks)

    monkeypatch.setattr(Oracle, "losses", counted)
    return rows


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"query_data": "fresh"},
        {"query_data": "shared"},
        {"clients_per_round": 3},
        {"mode": "calibrate", "bp_interval": 2, "bp_batch_size": 1},
        {"directions": "lowrank", "optimizer": "adam", "scope": "regex:ln_f"},
    ],
    ids=str,
)
def test_merged_clients_measure_what_they_measure_alone(tmp_path, changes, passes):
    common = {"num_clients": SITES, "num_rounds": 2, **changes}
    alone = federate(config(tmp_path, "alone", **common))
    assert not passes
    chosen = config(tmp_path, "merged", merge_clients=True, **common)
    merged = federate(chosen, Merging(chosen))
    assert passes
    mine, theirs = numbers(merged), numbers(alone)
    assert mine.keys() == theirs.keys()
    first = [key for key in mine if key[0] == 1]  # later ones are at parameters of their own
    for key in first:
        assert mine[key][0] == pytest.approx(theirs[key][0], rel=1e-6)
        np.testing.assert_allclose(mine[key][1], theirs[key][1], rtol=0, atol=1e-5)
    again = config(tmp_path, "again", merge_clients=True, **common)
    assert federate(again, Merging(again)).digest == merged.digest


def test_one_forward_serves_all_sites_and_none_is_too_large(tmp_path, passes, monkeypatch):
    chosen = config(tmp_path, merge_clients=True, num_clients=SITES, num_rounds=1, queries=1)
    federate(chosen, Merging(chosen))
    assert passes == [2 * SITES] * 2
    passes.clear()
    monkeypatch.setattr(merged_clients, "PASS_TOKENS", 4 * chosen.data.block_size)
    small = config(tmp_path, "s", merge_clients=True, num_clients=SITES, num_rounds=1, queries=1)
    federate(small, Merging(small))
    assert passes == [4, 4, 2] * 2


def test_a_site_that_answers_twice_or_not_at_all_changes_nothing_for_the_others(tmp_path):
    def drop(reply):
        return [] if is_reply(reply, site=2, round_=1) else [reply, reply]

    chosen = config(tmp_path, merge_clients=True, num_clients=SITES, num_rounds=2)
    result = federate(chosen, Merging(chosen, change=drop))
    whole = config(tmp_path, "whole", merge_clients=True, num_clients=SITES, num_rounds=2)
    expected = numbers(federate(whole, Merging(whole)))
    for key, (loss, differences) in numbers(result).items():
        if key[0] == 1:
            assert loss == expected[key][0]
            assert np.array_equal(differences, expected[key][1])


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("seed-schedule", {"seed_schedule": "independent"}),
        ("mode", {"mode": "fo"}),
        ("local-steps", {"local_steps": 2}),
        ("parallel-queries", {"parallel_queries": 2}),
        ("staleness", {"staleness": 1}),
    ],
)
def test_what_cannot_be_merged_is_refused(tmp_path, key, changes):
    with pytest.raises(ConfigError, match=f"merge-clients with {key}"):
        config(tmp_path, merge_clients=True, **changes)


def test_the_local_engine_merges_where_it_is_told_to(tmp_path, passes):
    from dandelion.engines.local import run_local

    for name, merge in (("alone", False), ("merged", True)):
        run_local(config(tmp_path, name, merge_clients=merge, num_rounds=1))
        assert bool(passes) == merge


def test_other_engines_refuse_to_merge():
    from flwr.app import Context

    from server.app import main

    context = Context(1, 1, {}, RecordDict(), {"merge-clients": True})
    with pytest.raises(ConfigError, match="only the local engine"):
        main(None, context)
