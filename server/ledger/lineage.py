"""The lineage of a round: the entries that lead there from the base model, without undone ones."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from server.ledger.reader import LedgerReader
from shared.protocol.entry import MAGIC_DROPPED, Entry

# A rewind in round 6 to round 2 undoes the rounds 3, 4 and 5:
#
#     0 ── 1 ── 2 ── 3 ── 4 ── 5
#               └──────────────── 6 ── 7 ── 8
#
# The lineage of round 8 is 0, 1, 2, 6, 7, 8; the lineage of round 4 is 0, 1, 2, 3, 4.


@dataclass(frozen=True)
class Lineage:
    """The rounds whose entries a replica applies to reach round ``to``; 0 is the base model.

    A replica at a round that is not in the lineage must start again from one that is.
    """

    to: int
    undone: tuple[range, ...]

    @classmethod
    def of(cls, rewinds: Iterable[tuple[int, int]], to: int) -> "Lineage":
        """Derive it from pairs of a rewind's round and the round that it went back to."""
        undone, at = [], to
        for round_, back_to in sorted(rewinds, reverse=True):
            if round_ <= at:
                undone.append(range(back_to + 1, round_))
                at = back_to
        return cls(to, tuple(undone))

    def __contains__(self, round_: int) -> bool:
        return 0 <= round_ <= self.to and not any(round_ in part for part in self.undone)


Line = range | Lineage  # a range has undone rounds as well


def lineage(ledger: LedgerReader, to: int) -> Lineage:
    """The lineage of a round of a run."""
    return Lineage.of(((r.round, r.back_to) for r in ledger.rewinds()), to)


def entries_between(ledger: LedgerReader, after: int, to: int) -> list[bytes]:
    """The encoded entries of the lineage of round ``to`` that follow round ``after``.

    Args:
        ledger: of the run.
        after: a round that is in the lineage.
        to: the round to reach.

    Raises:
        LedgerError: some of these rounds are not there.
    """
    line = lineage(ledger, to)
    payloads = enumerate(ledger.payloads(after, to), after + 1)
    return [payload for round_, payload in payloads if round_ in line]


def entries_along(ledger: LedgerReader, after: int, line: Line, to: int) -> Iterator[Entry]:
    """The decoded entries after round ``after`` up to ``to`` that are on a line, one by one."""
    return (ledger.entry(round_) for round_ in range(after + 1, to + 1) if round_ in line)


def newest_dropped(entries: Iterable[bytes]) -> int:
    """The newest round of some encoded entries whose dense gradient was dropped; 0: none."""
    mark = MAGIC_DROPPED.to_bytes(2, "little")
    rounds = [int.from_bytes(entry[4:8], "little") for entry in entries if entry[:2] == mark]
    return max(rounds, default=0)
