"""A reply that comes after its round was closed is counted, refused with a reason, and not used."""

from federation import config
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
