"""Traffic and refused replies that are not yet in the ledger; the next commit writes them."""

from collections.abc import Iterable

from flwr.app import Message, MessageType

from server.ledger.ledger import Ledger
from server.ledger.records import Refusal
from shared.base.text import escape_text
from shared.protocol.flower_records import is_dense, message_bytes, payload_bytes
from shared.protocol.transfers import Direction, Kind, Transfer


class RoundLog:
    """The one place that counts bytes and refusals; each is written into the ledger once (I6).

    Whoever sends, receives or refuses a message adds it here. A row is taken by ``until`` when its
    round is written, and never changed.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._transfers: list[Transfer] = []
        self._refusals: list[Refusal] = []

    def add_sent(self, message: Message, round_: int, site: str) -> None:
        """Count a message to a site; it must be sent, so that it has Flower's message id."""
        self._transfers.append(transfer(message, round_, site, "down"))

    def add_received(self, message: Message, round_: int, site: str) -> None:
        """Count a message from a site."""
        self._transfers.append(transfer(message, round_, site, "up"))

    def refuse(self, round_: int, site: str, reason: str, detail: str = "") -> None:
        """Count a reply that is not used or did not come; ``reason`` is one of a few words."""
        row = Refusal(round_, escape_text(site), reason, escape_text(detail))
        self._refusals.append(row)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """The refusals that are not in the ledger yet."""
        return tuple(self._refusals)

    def until(self, round_: int) -> tuple[list[Transfer], list[Refusal]]:
        """Take what is to be written with a round; what belongs to later rounds stays."""
        transfers = [each for each in self._transfers if each.round <= round_]
        refusals = [each for each in self._refusals if each.round <= round_]
        self._transfers = [each for each in self._transfers if each.round > round_]
        self._refusals = [each for each in self._refusals if each.round > round_]
        return transfers, refusals

    def write_rest(self, rounds: int) -> None:
        """Write what no round of a run of ``rounds`` will: late replies, and abandoned rounds."""
        self._ledger.note(*self.until(rounds))

    def write_refusals(self) -> None:
        """Write the refusals that are here now, so that others see them before the next commit."""
        if self._refusals:
            self._ledger.note([], self._refusals)
            self._refusals = []

    def payload(self, direction: Direction, round_: int, transfers: Iterable[Transfer]) -> int:
        """Bytes of a round that is about to be written, attempts that were skipped included."""
        earlier = self._ledger.payload_bytes(round_, direction)
        return earlier + sum(t.payload for t in transfers if t.direction == direction)


def transfer(message: Message, round_: int, site: str, direction: Direction) -> Transfer:
    """Count the bytes of a message, and say what kind of content it has."""
    kind: Kind = "scalars"
    if message.has_error() or message.metadata.message_type == MessageType.QUERY:
        kind = "control"
    elif len(message.content) > 1:
        kind = "snapshot"
    elif is_dense(message.content):
        kind = "gradient"
    size = message_bytes(message)
    return Transfer(round_, site, direction, kind, payload_bytes(message), size)
