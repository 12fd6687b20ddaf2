"""Snapshot files of a run: written now and then, found again when a replay should start late."""

from collections.abc import Iterator
from itertools import takewhile

import xxhash

from server.ledger import Ledger
from shared.entry import Entry
from shared.errors import GapError, SnapshotError
from shared.replica import Replica, check_digest
from shared.snapshot import encode_snapshot, load_snapshot_, write_atomically


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
        """Round and bytes of the newest snapshot that is not after round ``to``."""
        rows = self._ledger.rows(
            "SELECT round, bytes FROM snapshots WHERE round <= ? ORDER BY round DESC LIMIT 1", (to,)
        )
        return (int(rows[0][0]), int(rows[0][1])) if rows else None

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
    """Apply the ledger's entries after the replica's round up to ``to``; note digests that lack.

    Raises:
        DivergedError: the parameters of a round are not those that were recorded.
    """
    for round_, digest in replica.proven(_entries(ledger, replica.round, to)):
        check_digest(round_, digest, ledger.digest(round_))
        ledger.record_digest(round_, digest)


def rebuilt_(replica: Replica, ledger: Ledger, to: int) -> Iterator[tuple[int, bytes]]:
    """Bring a replica to round ``to`` from the entries alone; yield each round with its digest.

    Where gradients were dropped it leaps to the next snapshot: those rounds are not yielded.

    Raises:
        GapError: the next snapshot is later than ``to``; says which rounds can be rebuilt.
        SnapshotError: the next snapshot is gone or damaged.
    """
    while replica.round < to:
        whole = takewhile(lambda entry: not entry.dropped, _entries(ledger, replica.round, to))
        yield from replica.proven(whole)
        if replica.round < to:
            _leap_(replica, ledger, to)
            yield replica.round, replica.digest()


def rebuild_(replica: Replica, ledger: Ledger, to: int) -> None:
    """Bring a replica to round ``to`` as ``rebuilt_`` does, faster, for nobody asks how."""
    while replica.round < to:
        whole = takewhile(lambda entry: not entry.dropped, _entries(ledger, replica.round, to))
        replica.apply(whole)
        if replica.round < to:
            _leap_(replica, ledger, to)


def _entries(ledger: Ledger, after: int, to: int) -> Iterator[Entry]:
    return (ledger.entry(round_) for round_ in range(after + 1, to + 1))


def _leap_(replica: Replica, ledger: Ledger, to: int) -> None:
    before = replica.round
    later = ledger.rows("SELECT min(round) FROM snapshots WHERE round > ?", (before,))[0][0]
    if later is None or later > to:
        raise GapError(
            f"round {to} cannot be rebuilt: the gradient of round {before + 1} was dropped; "
            f"the next round that can is {later or 'none'}, from its snapshot"
        )
    data, name = Snapshots(ledger).read(later), f"snapshot of round {later}"
    load_snapshot_(replica, data, ledger.head("run"), name)
