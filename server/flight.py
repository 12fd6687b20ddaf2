"""A round that was asked for and is not closed; with staleness two of them are open at once."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Message

from server.cohort import Site
from server.exchange import Exchange


@dataclass(frozen=True)
class Flight:
    """Who was asked for a round, and the messages that went there and come back."""

    round: int
    exchange: Exchange
    asked: Mapping[int, Site]  # by node id
    since: float = field(default_factory=time.monotonic)

    def site_of(self, reply: Message) -> Site | None:
        """The site whose answer this is; None where it was not asked."""
        node_id = self.exchange.node_of(reply)
        return None if node_id is None else self.asked.get(node_id)

    def name_of(self, reply: Message) -> str:
        """What to call whoever sent this."""
        site = self.site_of(reply)
        return site.name.name if site else f"node {reply.metadata.src_node_id}"
