"""Sums that ride with the next round: one message a round, the same bits, and every fault."""

import random
from collections import Counter

import pytest
from federation import Network, federate, ledger_of, resumed
from hazards import Chaos, Cut
from sealed_federation import (  # noqa: F401  (fixtures)
    Silence,
    lie_on_the_way,
    rider_in,
    sealed_config,
    sealed_home,
)

from client.privacy.node_policy import refuse
from client.sealed.sealed_site import SealedSite
from client.site.replica_host import _hosts
from dandelion.api.ledgers import verify_ledger
from server.rounds.messenger import Messenger
from shared.protocol.sealed_messages import decode_sum_answer


def config_of(folder, name="run", **changes):
    return sealed_config(folder, name, **{"staleness": 1, "num_rounds": 4, **changes})


@pytest.fixture
def alone(monkeypatch):
    """Runs whose requests for sums are messages of their own."""

    def federate_alone(config, grid=None):
        with monkeypatch.context() as patch:
            patch.setattr(Messenger, "carry", lambda self, grid, round_, riders: set())
            return federate(config, grid)

    return federate_alone


def requests(network):
    """How many messages went to each site, without its introduction."""
    sent = [m for m in network.sent if m.metadata.message_type == "train"]
    return Counter(message.metadata.dst_node_id - 2 for message in sent)


def reasons(result):
    return [(row[1], row[2], row[3]) for row in result.rows["refusals"]]


def test_a_round_is_one_message_to_each_site_and_the_bits_are_the_same(tmp_path, alone):
    config = config_of(tmp_path)
    network = Network(config)
    result = federate(config, network)
    assert requests(network) == dict.fromkeys(range(3), 4 + 1)  # the last sum has no next round
    apart = config_of(tmp_path, "apart")
    expected = alone(apart, many := Network(apart))
    assert requests(many) == dict.fromkeys(range(3), 2 * 4)
    assert (result.digest, result.entries) == (expected.digest, expected.entries)
    assert result.rows["refusals"] == []
    with ledger_of(config) as ledger:
        assert verify_ledger(ledger).sums == 4


def test_members_that_the_next_round_does_not_ask_are_asked_alone(tmp_path, alone):
    changes = {"sites": 5, "clients_per_round": 4, "min_replies": 4}
    expected = alone(config_of(tmp_path, "apart", **changes))
    config = config_of(tmp_path, **changes)
    network = Network(config)
    result = federate(config, network)
    assert (result.digest, result.entries) == (expected.digest, expected.entries)
    with ledger_of(config) as ledger:
        assert all(len(ledger.sum_rows(round_)) == 5 for round_ in range(1, 5))
    assert sum(requests(network).values()) == 4 * 4 + 3 + 5  # rounds, who sat out, the last sums


def test_members_whose_replies_are_lost_are_asked_alone(tmp_path):
    """Two of five replies to round 2 are lost, and with them two of four sums of round 1."""
    expected = federate(config_of(tmp_path, "whole", sites=5, num_rounds=1))
    config = config_of(tmp_path, sites=5, num_rounds=3)
    result = federate(config, Chaos(config, lost={(2, 1), (2, 2)}))
    assert result.entries[0] == expected.entries[0]
    with ledger_of(config) as ledger:
        assert len(ledger.sum_rows(1)) == 5
        assert [row.site for row in ledger.cohort_rows(2, 0)] == ["0", "3", "4"]


@pytest.mark.parametrize("seed", [1, 2])
def test_order_and_duplicates_do_not_matter(tmp_path, seed):
    expected = federate(config_of(tmp_path, "whole", sites=4))
    config = config_of(tmp_path, sites=4)
    result = federate(config, Chaos(config, lost=set(), order=random.Random(seed)))
    assert (result.digest, result.entries) == (expected.digest, expected.entries)


def test_a_member_that_refuses_is_named_and_its_round_counts(tmp_path, monkeypatch):
    expected = federate(config_of(tmp_path, "whole", sites=5))
    real = SealedSite.add_up

    def add_up(self, request):
        if self.identity.site.name == "2":
            refuse("one-cohort", "in this test")
        return real(self, request)

    monkeypatch.setattr(SealedSite, "add_up", add_up)
    config = config_of(tmp_path, sites=5)
    result = federate(config)
    assert (result.digest, result.entries) == (expected.digest, expected.entries)
    assert reasons(result) == [(round_, "2", "error") for round_ in range(1, 5)]
    assert {row[4] for row in result.rows["refusals"]} == {
        "PolicyError: refused by policy: one-cohort"
    }


def test_a_lying_member_is_corrected_and_named(tmp_path):
    expected = federate(config_of(tmp_path, "honest", sites=9, num_rounds=2))
    config = config_of(tmp_path, "lied to", sites=9, num_rounds=2)

    def change(message):
        is_liar = message.metadata.src_node_id - 2 == 3 and rider_in(message)
        return [lie_on_the_way(message) if is_liar else message]

    result = federate(config, Network(config, change=change))
    assert (result.digest, result.entries) == (expected.digest, expected.entries)
    assert reasons(result) == [(1, "3", "wrong sum")]


def test_too_few_sums_cost_an_attempt_though_the_next_round_is_gathered(tmp_path, sealed_home):
    """Round 3 is measured anew, at parameters that the sites' replicas have left."""
    config = config_of(tmp_path, sites=5)
    network = Silence(config, silent={1, 2}, attempts=(0,), rounds=(3,))
    result = federate(config, network)
    assert [row[1:] for row in result.rows["skips"]] == [(3, "3 of 4 members added up")]
    with ledger_of(config) as ledger:
        assert [ledger.sum_rows(round_)[0].attempt for round_ in range(1, 5)] == [0, 0, 1, 0]
        assert verify_ledger(ledger).sums == 4


def test_a_server_that_is_killed_as_sums_are_under_way_goes_on_with_the_cohort(tmp_path):
    expected = federate(config_of(tmp_path, "whole", sites=4))
    config = config_of(tmp_path, "killed", sites=4)

    class Killed(Network):
        def pull_messages(self, message_ids):
            arrived = list(super().pull_messages(message_ids))
            if any(m.metadata.group_id == "3" and rider_in(m) for m in arrived):
                raise Cut
            return arrived

    with pytest.raises(Cut):
        federate(config, Killed(config))
    with ledger_of(config) as ledger:
        before = ledger.cohort_rows(2, 0)
        assert (len(before), ledger.last_round) == (4, 1)
    _hosts.clear()  # and all sites are started again
    result = federate(resumed(config))
    with ledger_of(config) as ledger:
        assert ledger.cohort_rows(2, 0) == before
    assert (result.digest, result.entries) == (expected.digest, expected.entries)


def test_what_rides_without_being_a_request_for_a_sum_is_not_answered(tmp_path):
    """Least of all a second round to measure: a site says so, and measures what it was asked."""
    config = config_of(tmp_path, num_rounds=2)

    class Odd(Network):
        def _deliver(self, message):
            if rider_in(message):
                message.content["d"]["r"] = message.content["d"]["b"]
            return super()._deliver(message)

    network = Odd(config)
    result = federate(config, network)
    riders = [rider_in(message) for message in network.received if rider_in(message)]
    assert {decode_sum_answer(rider) for rider in riders} == {
        "WireError: a request for a sum expected beside that for a round"
    }
    assert [reason for _, _, reason in reasons(result)] == ["error"] * 3
    assert [row[2] for row in result.rows["skips"]] == ["0 of 3 members added up"]
