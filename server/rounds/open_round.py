"""Rounds that were requested and are not closed, and what becomes of replies that are overdue.

With ``staleness = 1`` two rounds are open at once. If their numbers are sealed, the second carries
the requests for the sums of the first, and is gathered before the first is closed.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Message

from server.rounds.cohort import SiteRecord
from server.rounds.exchange import Exchange
from server.rounds.round_log import RoundLog

MARGIN = 4  # times the longest answer of the same node so far
MOST_CLOSED = 8  # rounds whose late replies are still looked for


@dataclass(frozen=True)
class OpenRound:
    """The sites that a round was requested of, and the messages to and from them."""

    round: int
    exchange: Exchange
    sites: Mapping[int, SiteRecord]  # by node id
    riders: Mapping[int, bytes] = field(default_factory=dict)  # by node id: requests for sums
    since: float = field(default_factory=time.monotonic)

    def site_of(self, message: Message) -> SiteRecord | None:
        """The site that sent this reply; None if the round was not requested of it."""
        node_id = self.exchange.node_of(message)
        return None if node_id is None else self.sites.get(node_id)

    def name_of(self, message: Message) -> str:
        """The name of the sender: of a site, or of a node that is none of the round's."""
        site = self.site_of(message)
        return site.id.name if site else f"node {message.metadata.src_node_id}"


class LateReplies:
    """Collects the replies that closed rounds did not get in time."""

    def __init__(self, log: RoundLog) -> None:
        self._log = log
        self._closed: list[OpenRound] = []

    def watch(self, closed: OpenRound) -> None:
        """Remember a round that is closed, if a reply to it is still to come."""
        if closed.exchange.unanswered:
            self._closed = [*self._closed, closed][-MOST_CLOSED:]

    def collect(self) -> None:
        """Count the bytes of what has come since, and refuse it; errors count as missing already.

        A late reply is never used.
        """
        for closed in self._closed:
            for message in closed.exchange.pull_late():
                name = closed.name_of(message)
                self._log.add_received(message, closed.round, name)
                if not message.has_error():
                    detail = f"round {closed.round} did without it"
                    self._log.refuse(closed.round, name, "late", detail)
        self._closed = [closed for closed in self._closed if closed.exchange.unanswered]


@dataclass
class ResendPolicy:
    """Decides when a request is sent again to a node that does not answer.

    Flower sends nothing twice, so a message that was lost with a connection or a process would
    never arrive. A node that has answered before gets its request again after ``least`` seconds, or
    after MARGIN times its longest answer if that is more, then after twice as long, and so on. A
    site answers a repeated request with the same numbers, and the first answer counts.
    """

    least: float  # seconds; 0: no request is sent again
    longest: dict[int, float] = field(default_factory=dict)  # seconds, by node id

    def note(self, node_id: int, seconds: float) -> None:
        """Note how long an answer took."""
        self.longest[node_id] = max(seconds, self.longest.get(node_id, 0.0))

    def is_due(self, node_id: int, seconds: float, times: int) -> bool:
        """Whether a request that has waited for ``seconds`` is sent again, after ``times`` resends.

        A node's first answer is never overdue: it builds its model and data before it.
        """
        longest = self.longest.get(node_id)
        if longest is None or not self.least:
            return False
        return seconds > max(self.least, MARGIN * longest) * (1 << times)
