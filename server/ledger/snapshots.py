"""Snapshot files of a run, and how a replica is rebuilt from them and from the ledger's entries."""

from collections.abc import Iterator
from itertools import takewhile

import xxhash

from server.ledger.ledger import Ledger
from server.ledger.lineage import Line, entries_along, lineage
from server.ledger.reader import LedgerReader
from server.ledger.records import SnapshotRow
from shared.base.errors import GapError, SnapshotError
from shared.base.files import write_atomically
from shared.replica.replica import Replica, check_digest
from shared.replica.snapshot import encode_snapshot, load_snapshot_


class SnapshotReader:
    """The folder ``snapshots`` beside a ledger; a file counts only if the ledger has its row."""

    def __init__(self, ledger: LedgerReader) -> None:
        self._reader = ledger
        self.folder = ledger.path.parent / "snapshots"

    def latest(self, to: int) -> SnapshotRow | None:
        """The newest snapshot in the lineage of round ``to``."""
        line = lineage(self._reader, to)
        return next((row for row in reversed(self._reader.snapshots()) if row.round in line), None)

    def read(self, round_: int) -> bytes:
        """The content of the snapshot file of a round.

        Raises:
            SnapshotError: there is none, or the file is gone or not what was written.
        """
        if (row := self._reader.snapshot(round_)) is None:
            raise SnapshotError(f"{self.folder}: there is no snapshot of round {round_}")
        path = self.folder / row.file
        try:
            data: bytes = path.read_bytes()
        except OSError as error:
            raise SnapshotError(f"{path}: {error.strerror}") from error
        if len(data) != row.size:
            raise SnapshotError(f"{path}: {row.size} bytes expected, got {len(data)}")
        if xxhash.xxh3_128_digest(data) != row.digest:
            raise SnapshotError(f"{path}: damaged, not the bytes that were written")
        return data


class Snapshots(SnapshotReader):
    """The snapshots of a run that goes on: new ones are written, useless ones are forgotten."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger)
        self._ledger = ledger

    def write(self, replica: Replica, run: bytes) -> None:
        """Write the replica into a file; the ledger gets its row when the file is whole."""
        path = self.folder / f"round-{replica.round:06d}.safetensors"
        data = encode_snapshot(replica, run)
        write_atomically(path, data)
        self._ledger.record_snapshot(
            replica.round, path.name, len(data), xxhash.xxh3_128_digest(data)
        )

    def forget(self, round_: int) -> None:
        """Do without the snapshot of a round from now on: its file is of no use."""
        self._ledger.forget_snapshot(round_)

    def restore_(self, replica: Replica, run: bytes, to: int) -> list[str]:
        """Bring a fresh replica to round ``to``, from the newest snapshot that can be used.

        Returns a message for each snapshot that could not be used; replay does without them.

        Raises:
            DivergedError: the parameters of a round are not those that were recorded.
        """
        complaints: list[str] = []
        while (row := self.latest(to)) is not None:
            try:
                load_snapshot_(replica, self.read(row.round), run, f"snapshot of round {row.round}")
                break
            except SnapshotError as error:
                complaints.append(str(error))
                self.forget(row.round)
        follow_(replica, self._ledger, to)
        return complaints


def follow_(replica: Replica, ledger: Ledger, to: int) -> None:
    """Apply the entries from the replica's round to ``to``; compare or record each digest.

    Raises:
        DivergedError: the parameters of a round are not those that were recorded.
    """
    entries = entries_along(ledger, replica.round, lineage(ledger, to), to)
    for round_, digest in replica.apply_with_digests(entries):
        check_digest(round_, digest, ledger.digest(round_))
        ledger.record_digest(round_, digest)


def rebuild_each_(replica: Replica, ledger: LedgerReader, to: int) -> Iterator[tuple[int, bytes]]:
    """Bring a replica to round ``to`` from the entries alone; yield each round with its digest.

    Rounds that a rewind undid are rebuilt too; their common ancestor stays in memory for that. If
    gradients were dropped, the replica leaps to the next snapshot, and the rounds between are not
    yielded.

    Raises:
        GapError: the next snapshot is later than ``to``; says which rounds can be rebuilt.
        SnapshotError: the next snapshot is gone or damaged.
    """
    run, ancestors, at = ledger.header("run"), dict[int, bytes](), replica.round
    rewinds = {r.round: r.back_to for r in ledger.rewinds() if r.round <= to}
    stops = {*rewinds.values(), *(round_ - 1 for round_ in rewinds), to}
    for stop in sorted(stops):
        yield from _rebuild_stretch_(replica, ledger, at, stop, range(to + 1))
        at = max(stop, replica.round)
        if stop in rewinds.values() and replica.round == stop:
            ancestors[stop] = encode_snapshot(replica, run)
        if (back_to := rewinds.get(stop + 1)) in ancestors and at == stop:
            load_snapshot_(replica, ancestors[back_to], run, f"round {back_to}")


def rebuild_(replica: Replica, ledger: LedgerReader, to: int) -> None:
    """Bring a replica to round ``to`` along its lineage; no digest is computed on the way.

    Raises:
        GapError: the next snapshot is later than ``to``; says which rounds can be rebuilt.
        SnapshotError: the next snapshot is gone or damaged.
    """
    line = lineage(ledger, to)
    while replica.round < to:
        entries = entries_along(ledger, replica.round, line, to)
        replica.apply(takewhile(lambda entry: not entry.dropped, entries))
        if replica.round < to:
            _leap_(replica, ledger, replica.round, line, to)


def _rebuild_stretch_(
    replica: Replica, ledger: LedgerReader, after: int, to: int, line: Line
) -> Iterator[tuple[int, bytes]]:
    """Apply every entry after round ``after`` up to ``to``; leap over those that were dropped."""
    at = after
    while at < to:
        entries = entries_along(ledger, at, line, to)
        for round_, digest in replica.apply_with_digests(
            takewhile(lambda e: not e.dropped, entries)
        ):
            at = round_
            yield round_, digest
        if at < to:
            _leap_(replica, ledger, at, line, to)
            at = replica.round
            yield at, replica.digest()


def _leap_(replica: Replica, ledger: LedgerReader, after: int, line: Line, to: int) -> None:
    """Load the first snapshot on a line that is later than round ``after``."""
    later = [row.round for row in ledger.snapshots() if row.round > after]
    target = next((round_ for round_ in later if round_ in line), None)
    if target is None:
        raise GapError(
            f"round {to} cannot be rebuilt: the gradient of round {after + 1} was dropped; "
            f"the next round that can is {later[0] if later else 'none'}, from its snapshot"
        )
    data, name = SnapshotReader(ledger).read(target), f"snapshot of round {target}"
    load_snapshot_(replica, data, ledger.header("run"), name)
