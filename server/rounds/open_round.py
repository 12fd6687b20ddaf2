"""Rounds that were requested and are not closed: whose replies are awaited, overdue or late.

With ``staleness = 1`` two rounds are open at once.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Message

from server.ledger.records import Refusal
from server.rounds.cohort import SiteRecord
from server.rounds.exchange import Exchange, transfer
from shared.protocol.flower_records import Transfer


@dataclass(frozen=True)
class OpenRound:
    """Who was asked for a round, and the messages that went there and come back."""

    round: int
    exchange: Exchange
    asked: Mapping[int, SiteRecord]  # by node id
    since: float = field(default_factory=time.monotonic)

    def site_of(self, reply: Message) -> SiteRecord | None:
        """The site whose answer this is; None where it was not asked."""
        node_id = self.exchange.node_of(reply)
        return None if node_id is None else self.asked.get(node_id)

    def name_of(self, reply: Message) -> str:
        """What to call whoever sent this."""
        site = self.site_of(reply)
        return site.id.name if site else f"node {reply.metadata.src_node_id}"


MOST_CLOSED = 8  # rounds whose late replies are still looked for


class LateReplies:
    """Looks for what closed rounds did not get in time."""

    def __init__(self) -> None:
        self._closed: list[OpenRound] = []

    def close(self, open_round: OpenRound) -> None:
        """Remember a round whose time is over, if a reply of it is still to come."""
        if open_round.exchange.unanswered:
            self._closed = [*self._closed, open_round][-MOST_CLOSED:]

    def take(self) -> tuple[list[Transfer], list[Refusal]]:
        """What has come since: its bytes, and one refusal each; errors were counted as missing."""
        transfers: list[Transfer] = []
        refusals: list[Refusal] = []
        for closed in self._closed:
            for reply in closed.exchange.late():
                name = closed.name_of(reply)
                transfers.append(transfer(reply, closed.round, name, "up"))
                if not reply.has_error():
                    detail = f"round {closed.round} did without it"
                    refusals.append(Refusal(closed.round, name, "late", detail))
        self._closed = [closed for closed in self._closed if closed.exchange.unanswered]
        return transfers, refusals


MARGIN = 4  # times the longest answer of the same node so far


@dataclass
class ResendPolicy:
    """What a cable or a process that broke has swallowed never comes: Flower sends nothing twice.

    A node that has answered before is asked again after ``least`` seconds, or MARGIN times its
    longest answer where that is more, then after twice as long, and so on. A request that is there
    twice is answered with the same numbers, of which the first count.
    """

    least: float  # 0: nobody is asked again
    longest: dict[int, float] = field(default_factory=dict)  # seconds, by node id

    def note(self, node_id: int, seconds: float) -> None:
        """An answer took so long."""
        self.longest[node_id] = max(seconds, self.longest.get(node_id, 0.0))

    def is_over(self, node_id: int, seconds: float, times: int) -> bool:
        """Whether a node that was asked so long ago, for the 1 + ``times``-th time, is asked again.

        Nobody knows how long the first answer takes, with a model and data to be made before it.
        """
        longest = self.longest.get(node_id)
        if longest is None or not self.least:
            return False
        return seconds > max(self.least, MARGIN * longest) * (1 << times)
