"""A reply counts until its round is closed; later it is refused with a reason and not used."""

from collections import Counter

from federation import Network, config, federate, is_reply
from flwr.app import MessageType

from client.app import app
from dandelion.local import LocalGrid, contexts_of
from server.ledger import Ledger
from server.run import serve

SLOW = 2  # the node id of site 0


class Slow(LocalGrid):
    """One node's reply to the first round comes when the second is asked for."""

    def __init__(self, settings):
        super().__init__(app, contexts_of(settings))
        self.held, self.rounds = {}, 0

    def push_messages(self, messages):
        listed = list(messages)
        ids = list(super().push_messages(listed))
        if listed and listed[0].metadata.message_type == MessageType.TRAIN:
            self.rounds += 1
            self._inbox |= self.held
            self.held = {}
            for name, message in zip(ids, listed, strict=True):
                if message.metadata.dst_node_id == SLOW and self.rounds == 1:
                    self.held[name] = self._inbox.pop(name)
        return ids


def ledger_of(folder, settings, grid):
    return Ledger.open(serve(grid, settings.to_run_config()) / "ledger.sqlite")


def test_a_late_reply_is_refused_with_its_reason_and_its_bytes_are_counted(tmp_path):
    settings = config(tmp_path)
    ledger = ledger_of(tmp_path, settings, Slow(settings))
    refusals = ledger.rows("SELECT round, site, reason FROM refusals ORDER BY id")
    assert refusals == [(1, "0", "no answer"), (1, "0", "late")]
    assert ledger.rows("SELECT site FROM contributions WHERE round = 1") == [("1",), ("2",)]
    sent = ledger.rows("SELECT count(*) FROM traffic WHERE site = '0' AND direction = 'up' "
                       "AND kind = 'scalars'")  # fmt: skip
    assert sent == [(3,)]
    ledger.close()


class Patient(Network):
    """One site's reply to the second round is there only at the n-th look for it."""

    looks = 0

    def pull_messages(self, message_ids):
        found = super().pull_messages(message_ids)
        slow = [reply for reply in found if is_reply(reply, 1, 2)]
        if slow and self.looks < 6:
            self.looks += 1
            self._inbox |= {reply.metadata.reply_to_message_id: reply for reply in slow}
            return [reply for reply in found if reply not in slow]
        return found


def test_a_reply_that_takes_long_counts_until_the_time_out(tmp_path):
    whole = federate(config(tmp_path, "whole"))
    chosen = config(tmp_path, round_timeout=30.0)
    network = Patient(chosen)
    found = federate(chosen, network)
    assert network.looks == 6
    assert (found.entries, found.summary["refusals"]) == (whole.entries, {})


def test_more_sites_are_asked_than_a_round_needs(tmp_path):
    """``clients-per-round`` are asked, ``min-clients`` must answer: a silent one costs no round."""
    chosen = config(tmp_path, num_clients=4, clients_per_round=3, min_clients=2, num_rounds=12)
    silent = Network(chosen, change=lambda reply: [] if is_reply(reply, 1) else [reply])
    found = federate(chosen, silent)
    assert found.summary["skipped_rounds"] == 0
    asked, heard = Counter(), Counter(row[0] for row in found.rows["contributions"])
    for message in silent.sent:
        if message.metadata.message_type == MessageType.TRAIN:
            asked[int(message.metadata.group_id)] += 1
    assert set(asked.values()) == {3}
    assert set(heard.values()) == {2, 3}
    assert found.summary["refusals"] == {"no answer": list(heard.values()).count(2)}
