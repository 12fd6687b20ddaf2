"""One exchange with the nodes of a round: requests, replies, and a model for whoever needs it."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from server.rounds.replies import Expected
from server.strategies.node_exchange import NodeExchange, NodeReply

LOG = logging.getLogger("dandelion")


@dataclass(frozen=True)
class RoundTrip:
    """The messages of one kind that were made for a round, and what is needed to read replies."""

    exchange: NodeExchange
    kind: str  # train or evaluate
    grid: Grid
    config_key: str
    config: ConfigRecord
    messages: list[Message]

    @classmethod
    def to(
        cls,
        exchange: NodeExchange,
        nodes: Iterable[int],
        kind: str,
        grid: Grid,
        config_key: str,
        config: ConfigRecord,
    ) -> "RoundTrip":
        """Make one message for each of some nodes."""
        messages = exchange.request(nodes, kind, config_key, config)
        return cls(exchange, kind, grid, config_key, config, messages)

    def read(
        self, replies: Iterable[Message], numbers: int, weight_key: str, timeout: float
    ) -> list[NodeReply]:
        """Read replies; nodes that are behind are sent a model or entries, once, and read again.

        Args:
            replies: to ``messages``.
            numbers: that a valid reply has: q, or 0 of an evaluation.
            weight_key: of the metric that every valid reply has.
            timeout: seconds, for the second replies.

        Returns:
            The valid replies, in the order of their sites.
        """
        expected = Expected(self.exchange.round, numbers)
        valid, behind = self.exchange.read(self.messages, replies, expected)
        if behind:
            LOG.info("round %d: %d nodes need more", self.exchange.round, len(behind))
            again = self.exchange.request(behind, self.kind, self.config_key, self.config)
            answers = self.grid.send_and_receive(again, timeout=timeout)
            more, helpless = self.exchange.read(again, answers, expected)
            for node_id in helpless:
                self.exchange.refuse(
                    self.exchange.nodes[node_id].name, "behind", "also with what it was sent"
                )
            valid = self.exchange.drop_copies([*valid, *more])
        return self._comparable(valid, weight_key, numbers > 0)

    def _comparable(
        self, replies: list[NodeReply], weight_key: str, measured: bool
    ) -> list[NodeReply]:
        """The replies whose metrics can be averaged; the others are refused.

        Flower stops a round in which clients have different metrics; here the first site's count.
        """
        fine: list[NodeReply] = []
        for reply in replies:
            metrics = reply.sent.metrics
            weight = metrics.get(weight_key)
            if not isinstance(weight, int | float) or not weight > 0:
                detail = f"a metric {weight_key!r} above 0 expected, got {weight!r}"
            elif measured and weight != reply.measured.examples:
                detail = f"{weight_key!r} of {reply.measured.examples} expected, got {weight}"
            elif fine and set(metrics) != set(fine[0].sent.metrics):
                detail = f"{sorted(fine[0].sent.metrics)} expected, got {sorted(metrics)}"
            else:
                fine.append(reply)
                continue
            self.exchange.refuse(reply.sent.site.name, "other metrics", detail)
        return fine
