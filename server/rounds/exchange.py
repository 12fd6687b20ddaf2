"""Round trips of messages with some nodes, with a poll and a time-out of their own."""

import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

POLL_FIRST_S, POLL_LAST_S = 0.005, 0.25


class Exchange:
    """Sends messages and yields their replies; more may be sent while replies are read.

    Flower's own ``send_and_receive`` sleeps three seconds between polls. This one polls after
    POLL_FIRST_S, and then less and less often.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._nodes: dict[str, int] = {}  # message id to the node that it was sent to
        self._pending: dict[int, dict[str, float]] = {}  # by node: ids awaited, and since when
        self.answer_seconds: dict[int, float] = {}  # of each node's last answer
        self._open: dict[str, None] = {}  # ids of messages whose replies are awaited
        self._late: dict[str, None] = {}  # ids of messages that were not answered in time
        self._superseded: set[str] = set()  # ids that were answered when no longer awaited

    def send(self, messages: Iterable[Message]) -> list[Message]:
        """Send messages; return those that Flower could push."""
        listed = list(messages)
        sent = dict(zip(self.grid.push_messages(listed), listed, strict=False))
        sent = {name: message for name, message in sent.items() if name}
        self._nodes |= {name: message.metadata.dst_node_id for name, message in sent.items()}
        self._open |= dict.fromkeys(sent)
        for name in sent:
            self._pending.setdefault(self._nodes[name], {})[name] = time.monotonic()
        return list(sent.values())

    def replies(
        self, timeout_s: float, meanwhile: Callable[[], None] = lambda: None
    ) -> Iterator[Message]:
        """Yield replies as they come, until none is awaited or ``timeout_s`` seconds are over.

        ``meanwhile`` is called after each poll that leaves replies to come; it may send more. A
        late reply is no longer awaited, but yielded if this is called again.
        """
        deadline, pause = time.monotonic() + timeout_s, POLL_FIRST_S
        while ids := [*self._late, *self._open]:
            over, sent = time.monotonic() >= deadline, len(self._nodes)
            for reply in self.grid.pull_messages(ids):
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
        """Await no other answer of the node that has just answered message ``name``."""
        self._late.pop(name, None)
        if name not in self._open:
            self._superseded.add(name)
        else:
            node = self._nodes[name]
            pending = self._pending.pop(node)
            self.answer_seconds[node] = time.monotonic() - pending[name]
            for other in pending:
                del self._open[other]
                if other != name:
                    self._late[other] = None

    def was_awaited(self, reply: Message) -> bool:
        """Whether this answers the newest request to its node, and not a superseded one."""
        return reply.metadata.reply_to_message_id not in self._superseded

    def supersede(self, node_id: int) -> bool:
        """Await no answer of a node, which gets a new request; False if it has answered."""
        pending = self._pending.pop(node_id, {})
        for name in pending:
            del self._open[name]
            self._late[name] = None
        return bool(pending)

    def give_up(self) -> None:
        """Await nothing any more; replies that still come are late."""
        self._late |= self._open
        self._open.clear()
        self._pending.clear()

    def seconds_waiting(self) -> dict[int, float]:
        """Seconds since the newest request, of each node whose answer is awaited."""
        now = time.monotonic()
        return {node: now - max(pending.values()) for node, pending in self._pending.items()}

    @property
    def unanswered(self) -> bool:
        """Whether a message was not answered in time."""
        return bool(self._late)

    def pull_late(self) -> list[Message]:
        """Return replies that came after the time was up, without waiting for any."""
        replies = list(self.grid.pull_messages(list(self._late))) if self._late else []
        for reply in replies:
            self._late.pop(reply.metadata.reply_to_message_id, None)
        return replies

    def node_of(self, reply: Message) -> int | None:
        """The node that the answered message was sent to; None if another node answers it.

        An error may come from the grid itself: its source is then the server.
        """
        node_id = self._nodes.get(reply.metadata.reply_to_message_id)
        return node_id if reply.has_error() or reply.metadata.src_node_id == node_id else None
