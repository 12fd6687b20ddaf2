"""Snapshot files of a run: written now and then, found again when a replay should start late."""

from collections.abc import Iterator
from itertools import takewhile

import xxhash

from server.ledger.ledger import Ledger
from server.ledger.lineage import Lineage, lineage
from shared.base.errors import GapError, SnapshotError
from shared.base.files import write_atomically
from shared.protocol.entry import Entry
from shared.replica.replica import Replica, check_digest
from shared.replica.snapshot import encode_snapshot, load_snapshot_

Line = range | Lineage


class Snapshots:
    """The folder ``snapshots`` beside a ledger; only what the ledger names counts."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.folder = ledger.path.parent / "snapshots"

    def write(self, replica: Replica, run: bytes) -> None:
        """Keep the replica's round; the file first, whole, then its row."""
        path = self.folder / f"round-{replica.round:06d}.safetensors"
        data = encode_snapshot(replica, run)
        write_atomically(path, data)
        self._ledger.record_snapshot(
            replica.round, path.name, len(data), xxhash.xxh3_128_digest(data)
        )

    def latest(self, to: int) -> tuple[int, int] | None:
        """Round and bytes of the newest snapshot on the way to round ``to``."""
        rows = self._ledger.rows(
            "SELECT round, bytes FROM snapshots WHERE round <= ? ORDER BY round DESC", (to,)
        )
        line = lineage(self._ledger, to)
        return next(((int(r), int(size)) for r, size in rows if r in line), None)

    def read(self, round_: int) -> bytes:
        """The file of a round that ``latest`` named.

        Raises:
            SnapshotError: the file is gone or not what was written.
        """
        file, size, digest = self._ledger.rows(
            "SELECT file, bytes, digest FROM snapshots WHERE round = ?", (round_,)
        )[0]
        path = self.folder / str(file)
        try:
            data: bytes = path.read_bytes()
        except OSError as error:
            raise SnapshotError(f"{path}: {error.strerror}") from error
        if len(data) != size:
            raise SnapshotError(f"{path}: {size} bytes expected, got {len(data)}")
        if xxhash.xxh3_128_digest(data) != digest:
            raise SnapshotError(f"{path}: damaged, not the bytes that were written")
        return data

    def forget(self, round_: int) -> None:
        """Do without the snapshot of a round from now on: its file is of no use."""
        self._ledger.forget_snapshot(round_)

    def restore_(self, replica: Replica, run: bytes, to: int) -> list[str]:
        """Bring a fresh replica to round ``to``, from the newest snapshot that can be used.

        Returns what was wrong with the snapshots that could not be; replay does without them.
        """
        complaints: list[str] = []
        while (found := self.latest(to)) is not None:
            try:
                load_snapshot_(replica, self.read(found[0]), run, f"snapshot of round {found[0]}")
                break
            except SnapshotError as error:
                complaints.append(str(error))
                self.forget(found[0])
        follow_(replica, self._ledger, to)
        return complaints


def follow_(replica: Replica, ledger: Ledger, to: int) -> None:
    """Apply the entries on the way from the replica's round to ``to``; note digests that lack.

    Raises:
        DivergedError: the parameters of a round are not those that were recorded.
    """
    entries = _entries(ledger, replica.round, to, lineage(ledger, to))
    for round_, digest in replica.apply_with_digests(entries):
        check_digest(round_, digest, ledger.digest(round_))
        ledger.record_digest(round_, digest)


def rebuilt_(replica: Replica, ledger: Ledger, to: int) -> Iterator[tuple[int, bytes]]:
    """Bring a replica to round ``to`` from the entries alone; yield each round with its digest.

    Rounds that a rewind undid are rebuilt too; what it goes back to is held in memory for that.
    Where gradients were dropped it leaps to the next snapshot: those rounds are not yielded.

    Raises:
        GapError: the next snapshot is later than ``to``; says which rounds can be rebuilt.
        SnapshotError: the next snapshot is gone or damaged.
    """
    run, held, at = ledger.head("run"), dict[int, bytes](), replica.round
    rewinds = {r.round: r.back_to for r in ledger.rewinds() if r.round <= to}
    stops = {*rewinds.values(), *(round_ - 1 for round_ in rewinds), to}
    for stop in sorted(stops):
        yield from _stretch(replica, ledger, at, stop, range(to + 1))
        at = max(stop, replica.round)
        if stop in rewinds.values() and replica.round == stop:
            held[stop] = encode_snapshot(replica, run)
        if (back_to := rewinds.get(stop + 1)) in held and at == stop:
            load_snapshot_(replica, held[back_to], run, f"round {back_to}")


def _stretch(
    replica: Replica, ledger: Ledger, after: int, to: int, line: range
) -> Iterator[tuple[int, bytes]]:
    """Apply every entry after round ``after`` up to ``to``, or leap where it was dropped."""
    at = after
    while at < to:
        entries = _entries(ledger, at, to, line)
        whole = takewhile(lambda entry: not entry.dropped, entries)
        for round_, digest in replica.apply_with_digests(whole):
            at = round_
            yield round_, digest
        if at < to:
            _leap_(replica, ledger, at, to, line)
            at = replica.round
            yield at, replica.digest()


def rebuild_(replica: Replica, ledger: Ledger, to: int) -> None:
    """Bring a replica to round ``to`` by the entries that lead there; nobody asks how."""
    line = lineage(ledger, to)
    while replica.round < to:
        entries = _entries(ledger, replica.round, to, line)
        replica.apply(takewhile(lambda entry: not entry.dropped, entries))
        if replica.round < to:
            _leap_(replica, ledger, replica.round, to, line)


def _entries(ledger: Ledger, after: int, to: int, line: Line) -> Iterator[Entry]:
    return (ledger.entry(round_) for round_ in range(after + 1, to + 1) if round_ in line)


def _leap_(replica: Replica, ledger: Ledger, after: int, to: int, line: Line) -> None:
    rows = ledger.rows("SELECT round FROM snapshots WHERE round > ? ORDER BY round", (after,))
    later = next((round_ for (round_,) in rows if round_ in line), None)
    if later is None:
        raise GapError(
            f"round {to} cannot be rebuilt: the gradient of round {after + 1} was dropped; "
            f"the next round that can is {rows[0][0] if rows else 'none'}, from its snapshot"
        )
    data, name = Snapshots(ledger).read(later), f"snapshot of round {later}"
    load_snapshot_(replica, data, ledger.head("run"), name)
