"""Replies that come after their round was closed: counted and refused, never used."""

from collections.abc import Mapping
from dataclasses import dataclass

from server.cohort import Site
from server.exchange import Exchange, transfer
from server.records import Refusal
from shared.traffic import Transfer

MOST_CLOSED = 8  # rounds whose late replies are still looked for


@dataclass(frozen=True)
class Closed:
    """A round that did not wait any longer for some of its sites."""

    round: int
    exchange: Exchange
    asked: Mapping[int, Site]  # by node id


class Late:
    """Looks for what closed rounds did not get in time."""

    def __init__(self) -> None:
        self._closed: list[Closed] = []

    def close(self, round_: int, exchange: Exchange, asked: Mapping[int, Site]) -> None:
        """Remember a round whose time is over, if a reply of it is still to come."""
        if exchange.unanswered:
            self._closed = [*self._closed, Closed(round_, exchange, asked)][-MOST_CLOSED:]

    def take(self) -> tuple[list[Transfer], list[Refusal]]:
        """What has come since: its bytes, and one refusal each; errors were counted as missing."""
        transfers: list[Transfer] = []
        refusals: list[Refusal] = []
        for closed in self._closed:
            for reply in closed.exchange.late():
                site = closed.asked.get(closed.exchange.node_of(reply) or 0)
                name = site.name.name if site else f"node {reply.metadata.src_node_id}"
                transfers.append(transfer(reply, closed.round, name, "up"))
                if not reply.has_error():
                    detail = f"round {closed.round} was closed without it"
                    refusals.append(Refusal(closed.round, name, "late", detail))
        self._closed = [closed for closed in self._closed if closed.exchange.unanswered]
        return transfers, refusals
