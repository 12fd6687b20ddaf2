"""The way to a round: the entries that lead there from the base model, without what was undone."""

from collections.abc import Iterable
from dataclasses import dataclass

from server.ledger.ledger import Ledger
from shared.protocol.entry import MAGIC_DROPPED


@dataclass(frozen=True)
class Lineage:
    """The rounds whose entries a replica applies to come to round ``to``; 0 is the base model.

    A rewind t → s undoes the rounds between s and t: a replica that is at one of them is on no way
    to round t or a later one.
    """

    to: int
    undone: tuple[range, ...]

    @classmethod
    def of(cls, rewinds: Iterable[tuple[int, int]], to: int) -> "Lineage":
        """Read from pairs of a rewind's round and the round that it went back to."""
        undone, at = [], to
        for round_, back_to in sorted(rewinds, reverse=True):
            if round_ <= at:
                undone.append(range(back_to + 1, round_))
                at = back_to
        return cls(to, tuple(undone))

    def __contains__(self, round_: int) -> bool:
        return 0 <= round_ <= self.to and not any(round_ in part for part in self.undone)


def lineage(ledger: Ledger, to: int) -> Lineage:
    """The lineage of a round of a run."""
    return Lineage.of(((r.round, r.back_to) for r in ledger.rewinds()), to)


def entries_between(ledger: Ledger, after: int, to: int) -> list[bytes]:
    """The encoded entries from round ``after``, which must be on the lineage, to round ``to``."""
    line = lineage(ledger, to)
    payloads = enumerate(ledger.payloads(after, to), after + 1)
    return [payload for round_, payload in payloads if round_ in line]


def newest_dropped(entries: Iterable[bytes]) -> int:
    """The newest of some encoded entries whose dense gradient is gone, by its round; 0: none."""
    mark = MAGIC_DROPPED.to_bytes(2, "little")
    gone = [int.from_bytes(entry[4:8], "little") for entry in entries if entry[:2] == mark]
    return max(gone, default=0)
