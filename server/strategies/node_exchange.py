"""Messages to the nodes of somebody else's app, and what comes back: every byte is counted here.

A node that follows the run is sent the entries that it missed. One that is new, has lost its state
or differs is sent a model: a snapshot, which is also what a node gets that has missed so many
rounds that the entries would take more bytes.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from flwr.app import ConfigRecord, Message

from server.ledger.ledger import Ledger
from server.ledger.records import Refusal
from server.rounds.replies import Expected, RefusedError, check_reply
from server.strategies.global_model import GlobalModel
from shared.apps.records import AppReply, AppRequest, kind_of, pack_request, unpack_reply
from shared.base.errors import WireError
from shared.base.files import code_digest
from shared.base.text import escape_text
from shared.protocol.flower_records import message_bytes, payload_bytes
from shared.protocol.messages import (
    DIVERGED,
    Behind,
    Measured,
    Request,
    decode_reply,
    encode_request,
)
from shared.protocol.sealed_messages import Sealed
from shared.protocol.transfers import Direction, Transfer

LOG = logging.getLogger("dandelion")


@dataclass
class NodeRecord:
    """What the server knows of one node."""

    name: str  # of its site, once it has replied
    round: int | None = None  # that its replica is at; None: not known
    needs_model: bool = False  # it said that it cannot go on without


@dataclass(frozen=True)
class NodeReply:
    """One node's valid reply."""

    node_id: int
    sent: AppReply
    measured: Measured
    message: Message


@dataclass
class NodeExchange:
    """Keeps where the nodes' replicas are; makes requests, reads replies, refuses by name."""

    model: GlobalModel
    ledger: Ledger
    send_arrays: bool  # to a node that is new; False: it builds the same model itself
    nodes: dict[int, NodeRecord] = field(default_factory=dict)  # by node id
    refusals: list[Refusal] = field(default_factory=list)  # of the whole run
    _transfers: list[Transfer] = field(default_factory=list)  # that are not in the ledger yet
    _written: int = 0  # refusals that are in the ledger

    @property
    def round(self) -> int:
        """The round to be measured next."""
        return self.ledger.last_round + 1

    def request(
        self, node_ids: Iterable[int], kind: str, config_key: str, config: ConfigRecord
    ) -> list[Message]:
        """One message of a kind (train or evaluate) for each node."""
        messages = []
        for node_id in node_ids:
            record = self.nodes.setdefault(node_id, NodeRecord(f"node {node_id}"))
            content = pack_request(self._request(record), config_key, config)
            messages.append(Message(content, node_id, kind))
        return messages

    def read(
        self, requested: Iterable[Message], replies: Iterable[Message], expected: Expected
    ) -> tuple[list[NodeReply], list[int]]:
        """Read the replies to requests that were sent; count both.

        Returns:
            The valid replies in the order of their sites, and the nodes that need a model or more
            entries before they can reply.
        """
        silent: dict[int, Message] = {}
        for message in requested:
            silent[message.metadata.dst_node_id] = message
            self._count(message, "down", self._record(message.metadata.dst_node_id))
        valid, behind = list[NodeReply](), list[int]()
        for message in replies:
            node_id = message.metadata.src_node_id
            record = self._record(node_id)
            self._count(message, "up", record)
            if silent.pop(node_id, None) is None:
                self.refuse(record.name, "not requested", "a second reply, or of another node")
                continue
            try:
                reply = self._read(message, record, expected)
            except RefusedError as refused:
                self.refuse(record.name, refused.reason, str(refused))
                continue
            if reply is None:
                behind.append(node_id)
            else:
                valid.append(reply)
        for node_id in silent:
            self.refuse(self._record(node_id).name, "no answer", "none within the timeout")
        return self.drop_copies(valid), behind

    def refuse(self, site: str, reason: str, detail: str) -> None:
        """Warn of a reply that is not used, and count it."""
        name, why = escape_text(site), escape_text(detail)
        LOG.warning("round %d: reply of site %s refused: %s (%s)", self.round, name, reason, why)
        self.refusals.append(Refusal(self.round, name, reason, why))

    def take(self) -> tuple[list[Transfer], list[Refusal]]:
        """What is to be written into the ledger now; each is returned once."""
        transfers, refusals = self._transfers, self.refusals[self._written :]
        self._transfers, self._written = [], len(self.refusals)
        return transfers, refusals

    def bytes_of(self, direction: Direction) -> int:
        """Bytes of the messages that are not in the ledger yet, as Flower serialises them."""
        return sum(each.message for each in self._transfers if each.direction == direction)

    def payload_of(self, direction: Direction) -> int:
        """Bytes of our records in these messages."""
        return sum(each.payload for each in self._transfers if each.direction == direction)

    def _record(self, node_id: int) -> NodeRecord:
        return self.nodes.get(node_id) or NodeRecord(f"node {node_id}")

    def _count(self, message: Message, direction: Direction, record: NodeRecord) -> None:
        size = message_bytes(message)
        payload = payload_bytes(message)
        kind = kind_of(message)
        self._transfers.append(Transfer(self.round, record.name, direction, kind, payload, size))

    def _request(self, record: NodeRecord) -> AppRequest:
        """What a node is sent: entries, or a model if it needs one or if that is fewer bytes."""
        is_new = record.round is None
        bare = Request(
            round=self.round,
            learning_rate=0.0,  # it is in the entries: clients take no steps of their own
            digest=self.model.flat.replica.digest(),
            run=self.model.name,
            code=code_digest(),
        )
        about = self.model.about.encode() if is_new else ""
        if not (record.needs_model or (is_new and self.send_arrays)):
            numbers = range((record.round or 0) + 1, self.round)
            entries = tuple(self.ledger.entry(number).encode() for number in numbers)
            if sum(map(len, entries)) <= len(self.model.snapshot()) or is_new:
                return AppRequest(encode_request(replace(bare, entries=entries)), about)
        frozen = self.model.flat.frozen if is_new and self.model.flat.frozen else None
        snapshot, is_padded = self.model.snapshot(), self.model.is_padded
        return AppRequest(encode_request(bare), about, snapshot, frozen, is_padded)

    def _read(self, message: Message, record: NodeRecord, expected: Expected) -> NodeReply | None:
        """A valid reply; None if the node is behind.

        Raises:
            RefusedError: the reply cannot be used.
        """
        sent, reply = decode(message, expected)
        if isinstance(reply, Behind):
            self._note_behind(record, reply, sent.site.name)
            return None
        record.name = sent.site.name
        try:
            check_reply(reply, expected, self.model.flat.replica.digest())
        except RefusedError as refused:
            if refused.reason == "wrong digest":
                record.round, record.needs_model = None, True
            raise
        record.round, record.needs_model = self.round - 1, False
        return NodeReply(message.metadata.src_node_id, sent, reply, message)

    def _note_behind(self, record: NodeRecord, behind: Behind, name: str) -> None:
        """Note where a node says that it is; that it needs a model if entries would not help."""
        record.name = name
        if behind.reason == DIVERGED:
            self.refuse(name, "diverged", f"after round {behind.round}; it is sent the model anew")
        helped = behind.reason != DIVERGED and 0 < behind.round < (record.round or 0)
        record.round = behind.round if helped else None
        record.needs_model = not helped

    def drop_copies(self, replies: list[NodeReply]) -> list[NodeReply]:
        """One reply for each site, in the order of slots and node ids."""
        unique: dict[int, NodeReply] = {}
        for each in sorted(replies, key=lambda reply: (reply.sent.site, reply.node_id)):
            if each.sent.site.slot in unique:
                detail = f"node {unique[each.sent.site.slot].node_id} is this site already"
                self.refuse(each.sent.site.name, "duplicate", detail)
            unique.setdefault(each.sent.site.slot, each)
        return list(unique.values())


def decode(message: Message, expected: Expected) -> tuple[AppReply, Measured | Behind]:
    """Decode a message from a node; nothing but form and length is checked.

    Raises:
        RefusedError: an error, too long, or no reply of our handlers.
    """
    if message.has_error():
        raise RefusedError("error", message.error.reason or f"code {message.error.code}")
    try:
        sent = unpack_reply(message.content)
        if len(sent.reply) > expected.most_bytes:
            detail = f"at most {expected.most_bytes} bytes expected, got {len(sent.reply)}"
            raise RefusedError("oversized", detail)
        reply = decode_reply(sent.reply)
    except WireError as error:
        raise RefusedError("undecodable", str(error)) from error
    if isinstance(reply, Sealed):
        raise RefusedError("wrong kind", "numbers in the open expected, got sealed ones")
    return sent, reply
