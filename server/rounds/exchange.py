"""Messages out and replies in, with an own poll and time-out; their bytes are counted here."""

import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from shared.protocol.flower_records import (
    Direction,
    Kind,
    Transfer,
    is_dense,
    message_bytes,
    payload_bytes,
)

POLL_FIRST_S, POLL_LAST_S = 0.005, 0.25


class Exchange:
    """Round trips with some nodes; more may be sent while replies are read.

    Flower's own ``send_and_receive`` sleeps three seconds between looks; this one looks soon and
    then less often.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._nodes: dict[str, int] = {}  # message id to the node that it was sent to
        self._asked: dict[int, dict[str, float]] = {}  # by node: ids that are open, and since when
        self.took: dict[int, float] = {}  # seconds of each node's last answer
        self._open: dict[str, None] = {}  # ids of messages whose replies are awaited
        self._late: dict[str, None] = {}  # ids of messages that were not answered in time
        self._passed: set[str] = set()  # ids that were answered when they were not awaited any more

    def send(self, messages: Iterable[Message]) -> list[Message]:
        """Send messages; return those that Flower could push."""
        listed = list(messages)
        sent = dict(zip(self._grid.push_messages(listed), listed, strict=False))
        sent = {name: message for name, message in sent.items() if name}
        self._nodes |= {name: message.metadata.dst_node_id for name, message in sent.items()}
        self._open |= dict.fromkeys(sent)
        for name in sent:
            self._asked.setdefault(self._nodes[name], {})[name] = time.monotonic()
        return list(sent.values())

    def replies(
        self, timeout_s: float, meanwhile: Callable[[], None] = lambda: None
    ) -> Iterator[Message]:
        """What comes back, as it comes, until nothing is awaited or the time is up.

        ``meanwhile`` is called whenever there was a look and not all is there; it may send more.
        What is late is not awaited any more, but taken if this is called again.
        """
        deadline, pause = time.monotonic() + timeout_s, POLL_FIRST_S
        while ids := [*self._late, *self._open]:
            over, sent = time.monotonic() >= deadline, len(self._nodes)
            for reply in self._grid.pull_messages(ids):
                self._close(reply.metadata.reply_to_message_id)
                yield reply
            if over and sent == len(self._nodes):
                self.give_up()
            if not self._open:
                return
            meanwhile()
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(2 * pause, POLL_LAST_S)

    def _close(self, name: str) -> None:
        """An answer is in; what else the node was asked meanwhile is not awaited any more."""
        self._late.pop(name, None)
        if name not in self._open:
            self._passed.add(name)
        else:
            node = self._nodes[name]
            asked = self._asked.pop(node)
            self.took[node] = time.monotonic() - asked[name]
            for other in asked:
                del self._open[other]
                if other != name:
                    self._late[other] = None

    def was_awaited(self, reply: Message) -> bool:
        """Whether this was the answer to what its node was asked last, and not to an older one."""
        return reply.metadata.reply_to_message_id not in self._passed

    def supersede(self, node_id: int) -> bool:
        """Await no answer to what a node was asked: it is asked anew. False: it has answered."""
        asked = self._asked.pop(node_id, {})
        for name in asked:
            del self._open[name]
            self._late[name] = None
        return bool(asked)

    def give_up(self) -> None:
        """Await nothing any more; what still comes is late."""
        self._late |= self._open
        self._open.clear()
        self._asked.clear()

    def waiting(self) -> dict[int, float]:
        """Nodes whose answer is awaited, and for how many seconds since they were last asked."""
        now = time.monotonic()
        return {node: now - max(asked.values()) for node, asked in self._asked.items()}

    @property
    def unanswered(self) -> bool:
        """Whether a message was not answered in time."""
        return bool(self._late)

    def late(self) -> list[Message]:
        """Replies that came after the time was up, without waiting for any."""
        found = list(self._grid.pull_messages(list(self._late))) if self._late else []
        for reply in found:
            self._late.pop(reply.metadata.reply_to_message_id, None)
        return found

    def node_of(self, reply: Message) -> int | None:
        """The node that was asked what this answers; None where another one answers.

        An error may be the grid's own: its source is then the server itself.
        """
        node_id = self._nodes.get(reply.metadata.reply_to_message_id)
        return node_id if reply.has_error() or reply.metadata.src_node_id == node_id else None


def transfer(message: Message, round_: int, site: str, direction: Direction) -> Transfer:
    """What a message cost; one of ours must be sent, so that it has Flower's message id."""
    kind: Kind = "scalars"
    if message.has_error() or message.metadata.message_type == MessageType.QUERY:
        kind = "control"
    elif len(message.content) > 1:
        kind = "snapshot"
    elif is_dense(message.content):
        kind = "gradient"
    size = message_bytes(message)
    return Transfer(round_, site, direction, kind, payload_bytes(message), size)
