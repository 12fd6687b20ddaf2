"""A reply counts until its round is closed; later it is refused with a reason and not used."""

from collections import Counter

import pytest
from federation import Network, config, federate, is_reply
from flwr.app import MessageType

from client.app import app
from dandelion.engines.local import LocalGrid, contexts_of
from server.ledger.ledger import Ledger
from server.rounds.open_round import ResendPolicy
from server.run import serve

SLOW = 2  # the node id of site 0


class Slow(LocalGrid):
    """One node's reply to the first round comes when the second is asked for."""

    def __init__(self, settings):
        super().__init__(app, contexts_of(settings))
        self.withheld, self.rounds = {}, 0

    def push_messages(self, messages):
        listed = list(messages)
        ids = list(super().push_messages(listed))
        if listed and listed[0].metadata.message_type == MessageType.TRAIN:
            self.rounds += 1
            self._inbox |= self.withheld
            self.withheld = {}
            for name, message in zip(ids, listed, strict=True):
                if message.metadata.dst_node_id == SLOW and self.rounds == 1:
                    self.withheld[name] = self._inbox.pop(name)
        return ids


def ledger_of(folder, settings, grid):
    return Ledger.open(serve(grid, settings) / "ledger.sqlite")


def test_a_late_reply_is_refused_with_its_reason_and_its_bytes_are_counted(tmp_path):
    settings = config(tmp_path)
    ledger = ledger_of(tmp_path, settings, Slow(settings))
    refusals = [(r.round, r.site, r.reason) for r in ledger.refusals()]
    assert refusals == [(1, "0", "no answer"), (1, "0", "late")]
    first = [row for row in ledger.site_rounds(1, 1) if row.loss is not None]
    assert [row.site for row in first] == ["1", "2"]
    sent = [(t.site, t.direction, t.kind) for t in ledger.traffic()]
    assert sent.count(("0", "up", "scalars")) == 3
    ledger.close()


class Patient(Network):
    """One site's reply to the second round is there only at the n-th look for it."""

    looks = 0

    def pull_messages(self, message_ids):
        result = super().pull_messages(message_ids)
        slow = [reply for reply in result if is_reply(reply, 1, 2)]
        if slow and self.looks < 6:
            self.looks += 1
            self._inbox |= {reply.metadata.reply_to_message_id: reply for reply in slow}
            return [reply for reply in result if reply not in slow]
        return result


def test_a_reply_that_takes_long_counts_until_the_time_out(tmp_path):
    whole = federate(config(tmp_path, "whole"))
    chosen = config(tmp_path, round_timeout=30.0)
    network = Patient(chosen)
    result = federate(chosen, network)
    assert network.looks == 6
    assert (result.entries, result.summary["refusals"]) == (whole.entries, {})


def test_more_sites_are_asked_than_a_round_needs(tmp_path):
    """``clients-per-round`` are asked, ``min-replies`` must answer: a silent one costs no round."""
    chosen = config(tmp_path, num_clients=4, clients_per_round=3, min_replies=2, num_rounds=12)
    silent = Network(chosen, change=lambda reply: [] if is_reply(reply, 1) else [reply])
    result = federate(chosen, silent)
    assert result.summary["skipped_rounds"] == 0
    requests, heard = Counter(), Counter(row[0] for row in result.rows["contributions"])
    for message in silent.sent:
        if message.metadata.message_type == MessageType.TRAIN:
            requests[int(message.metadata.group_id)] += 1
    assert set(requests.values()) == {3}
    assert set(heard.values()) == {2, 3}
    assert result.summary["refusals"] == {"no answer": list(heard.values()).count(2)}


class Lossy(Network):
    """Answers are lost on the way, once for each of these: (site, round)."""

    def __init__(self, settings, lost):
        super().__init__(settings, change=self.lose)
        self.lost = [*lost]

    def lose(self, reply):
        for name in self.lost:
            if is_reply(reply, *name):
                self.lost.remove(name)
                return []
        return [reply]


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_site_whose_answer_was_lost_is_asked_again_and_no_bit_changes(tmp_path, staleness):
    whole = federate(config(tmp_path, "whole", staleness=staleness))
    chosen = config(tmp_path, round_timeout=60.0, resend_after=0.1, staleness=staleness)
    result = federate(chosen, Lossy(chosen, [(1, 2), (1, 2), (2, 3)]))
    assert (result.digest, result.entries) == (whole.digest, whole.entries)
    assert (result.summary["refusals"], result.rows["skips"]) == ({}, [])
    requests = Counter((row[2], row[1]) for row in result.rows["traffic"] if row[3] == "down")
    more = Counter((row[2], row[1]) for row in whole.rows["traffic"] if row[3] == "down")
    assert requests - more == Counter({("1", 2): 2, ("2", 3): 1})


def test_an_answer_to_each_of_two_requests_counts_once(tmp_path):
    """The first one was slow, not lost: the second is counted and refused."""
    whole = federate(config(tmp_path, "whole"))
    chosen = config(tmp_path, round_timeout=60.0, resend_after=0.1)
    network = Patient(chosen)
    result = federate(chosen, network)
    assert (result.digest, result.entries) == (whole.digest, whole.entries)
    assert result.summary["refusals"] == {"duplicate": 1}
    sent = [row for row in result.rows["traffic"] if row[1:4] == (2, "1", "down")]
    assert len(sent) == 2


def test_the_time_until_a_resend_grows_with_the_longest_answer_and_with_each_request():
    policy = ResendPolicy(10.0)
    assert not policy.is_due(1, 1e9, 0)  # it never answered: its model may be in the making
    policy.note(1, 0.5)
    assert [policy.is_due(1, s, 0) for s in (9.0, 11.0)] == [False, True]
    assert [policy.is_due(1, s, 2) for s in (39.0, 41.0)] == [False, True]
    policy.note(1, 5.0)
    policy.note(1, 1.0)
    assert [policy.is_due(1, s, 0) for s in (19.0, 21.0)] == [False, True]
    assert not ResendPolicy(0.0, {1: 1.0}).is_due(1, 1e9, 0)
