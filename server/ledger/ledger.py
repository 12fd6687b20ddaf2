"""The append-only record of a run: one SQLite file, one transaction per round."""

import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from server.ledger.hash_chain import chain_hash, lasting_payload, seal
from server.ledger.records import Contribution, Metrics, Refusal, Rewind
from server.ledger.schema import TABLES, VERSION
from server.ledger.verify import SEAL, check
from shared.base.errors import GapError, LedgerError
from shared.protocol.entry import MAGIC_DENSE, Entry
from shared.protocol.flower_records import Transfer
from shared.protocol.messages import Hello

TRANSFER = attrgetter(*(field.name for field in fields(Transfer)))  # astuple copies, and is slow
DETAIL = 500  # characters of a refusal's detail, which may come from a site, that are kept


class Ledger:
    """The rounds 1 to ``last_round`` without a gap, each whole or not there at all.

    Invariants: a row of ``entries`` is never changed, but that a dense gradient may give way to its
    digest; its ``chain`` binds it, the contributions
    that it came from and all rounds before; whoever applies an entry has read it back from here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = sqlite3.connect(
            path, isolation_level=None, timeout=30, check_same_thread=False
        )

    @classmethod
    def create(cls, path: Path, head: Mapping[str, bytes]) -> "Ledger":
        """Make a new ledger; ``head`` holds what the run is (run, config, base digest, code).

        Raises:
            LedgerError: there is a file already.
        """
        if path.exists():
            raise LedgerError(
                f"{path}: there is a ledger already; resume it or choose another name"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.draft")
        draft.unlink(missing_ok=True)
        with closing(cls(draft)) as ledger:
            ledger._write("PRAGMA journal_mode = MEMORY")
            with ledger._transaction():
                ledger._fill(head)
        draft.rename(path)  # so that there is a whole ledger or none
        ledger = cls(path)
        ledger._write("PRAGMA journal_mode = WAL")
        ledger._write("PRAGMA synchronous = FULL")
        return ledger

    @classmethod
    def open(cls, path: Path) -> "Ledger":
        """Open and check a ledger whole, before anything of it is used.

        Raises:
            LedgerError: missing, not a ledger, or damaged; names the file and the row.
        """
        if not path.is_file():
            raise LedgerError(f"{path}: no ledger there")
        ledger = cls(path)
        try:
            check(ledger)
            ledger._write("PRAGMA synchronous = FULL")
        except BaseException as error:
            ledger.close()
            if isinstance(error, TypeError | ValueError):  # a value is of another type
                raise LedgerError(f"{path}: damaged ({error})") from error
            raise
        return ledger

    def close(self) -> None:
        """Close the file; what is committed stays."""
        self._connection.close()

    def head(self, key: str) -> bytes:
        """What ``create`` was given under ``key``."""
        rows = self.rows("SELECT value FROM head WHERE key = ?", (key,))
        if not rows:
            raise LedgerError(f"{self.path}: head has no {key!r}")
        return _bytes(rows[0][0])

    @property
    def last_round(self) -> int:
        """The newest committed round; 0 at first."""
        return int(self.rows("SELECT coalesce(max(round), 0) FROM entries")[0][0])

    def commit(
        self,
        entry: Entry,
        contributions: Sequence[Contribution],
        transfers: Iterable[Transfer],
        metrics: Metrics,
        refusals: Iterable[Refusal] = (),
        reason: str = "",
    ) -> Entry:
        """Write a round in one transaction and return its entry as read back.

        ``reason`` says of a rewind why it was needed.

        Raises:
            GapError: the entry does not follow the last one.
        """
        if entry.round != self.last_round + 1:
            raise GapError(f"{self.path}: round {self.last_round + 1} expected, got {entry.round}")
        payload, rows = entry.encode(), [c.row() for c in contributions]
        with self._transaction():
            chain = chain_hash(self._chain_before(entry.round), payload, rows)
            self._write("INSERT INTO entries VALUES (?, ?, ?)", (entry.round, payload, chain))
            self._write_all("INSERT INTO contributions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._write(f"INSERT INTO metrics VALUES ({_marks(Metrics)})", astuple(metrics))
            if entry.undoes:
                rewind = (entry.round, entry.back_to, entry.learning_rate, reason)
                self._write("INSERT INTO rewinds VALUES (?, ?, ?, ?)", rewind)
            self._add(transfers, refusals)
        return self.entry(entry.round)

    def note(self, transfers: Iterable[Transfer], refusals: Iterable[Refusal]) -> None:
        """Write bytes and refusals that belong to no round that is still to come."""
        with self._transaction():
            self._add(transfers, refusals)

    def skip(
        self,
        round_: int,
        detail: str,
        transfers: Iterable[Transfer] = (),
        refusals: Iterable[Refusal] = (),
    ) -> None:
        """Note that a round found too few valid replies, and what was sent for it."""
        with self._transaction():
            self._write("INSERT INTO skips (round, detail) VALUES (?, ?)", (round_, detail))
            self._add(transfers, refusals)

    def record_site(self, hello: Hello) -> None:
        """Note who a site said it is when it was last met."""
        row = (hello.site, hello.slot, hello.device, hello.dtype, hello.threads, hello.examples)
        self._write("INSERT OR REPLACE INTO sites VALUES (?, ?, ?, ?, ?, ?)", row)

    def record_digest(self, round_: int, digest: bytes) -> None:
        """Note what the parameters were after a round; once noted it stays."""
        self._write("INSERT OR IGNORE INTO digests VALUES (?, ?)", (round_, digest))

    def record_evaluation(self, round_: int, loss: float) -> None:
        """Note the evaluation loss after a round; once noted it stays.

        SQLite has no NaN: a loss that is none is noted as infinite.
        """
        value = math.inf if math.isnan(loss) else loss
        self._write("INSERT OR IGNORE INTO evaluations VALUES (?, ?)", (round_, value))

    def record_scores(self, round_: int, site: str, scores: Mapping[str, float]) -> None:
        """Note what a site (or '', the server) reached after a round; once noted it stays."""
        rows = [(round_, site, name, value) for name, value in scores.items()]
        self._write_all("INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?)", rows)

    def record_snapshot(self, round_: int, file: str, size: int, digest: bytes) -> None:
        """Note that a snapshot of a round lies in ``file``, and what its bytes are."""
        row = (round_, file, size, digest)
        self._write("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?)", row)

    def forget_snapshot(self, round_: int) -> None:
        """Drop the note of a snapshot that turned out to be of no use."""
        self._write("DELETE FROM snapshots WHERE round = ?", (round_,))

    def entry(self, round_: int) -> Entry:
        """The entry of a round, decoded."""
        return Entry.decode(self.payloads(round_ - 1, round_)[0])

    def payloads(self, after: int, to: int) -> list[bytes]:
        """The encoded entries of the rounds after ``after`` up to ``to``."""
        rows = self.rows(
            "SELECT payload FROM entries WHERE round > ? AND round <= ? ORDER BY round", (after, to)
        )
        if len(rows) != to - after:
            raise LedgerError(
                f"{self.path}: rounds {after + 1} to {to} expected, {len(rows)} are there"
            )
        return [_bytes(row[0]) for row in rows]

    def drop_gradients(self, to: int) -> None:
        """Keep of the dense gradients of the rounds up to ``to`` their digests only."""
        query = "SELECT payload, round FROM entries WHERE round <= ? AND substr(payload, 1, 2) = ?"
        found = self.rows(query, (to, MAGIC_DENSE.to_bytes(2, "little")))
        with self._transaction():
            rows = [(lasting_payload(payload), round_) for payload, round_ in found]
            self._write_all("UPDATE entries SET payload = ? WHERE round = ?", rows)

    def rewinds(self) -> list[Rewind]:
        """Where the run went back to an earlier round, in order."""
        return [Rewind(*row) for row in self.rows("SELECT * FROM rewinds ORDER BY round")]

    def digest(self, round_: int) -> bytes | None:
        """The recorded digest of a round, if one was noted."""
        rows = self.rows("SELECT digest FROM digests WHERE round = ?", (round_,))
        return _bytes(rows[0][0]) if rows else None

    def rows(self, query: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of a read-only query, for reports too.

        Raises:
            LedgerError: the file cannot be read; names it.
        """
        try:
            return self._connection.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: cannot be read ({error})") from error

    def _chain_before(self, round_: int) -> bytes:
        if round_ == 1:
            return self.head(SEAL)
        return _bytes(self.rows("SELECT chain FROM entries WHERE round = ?", (round_ - 1,))[0][0])

    def _fill(self, head: Mapping[str, bytes]) -> None:
        for statement in TABLES.split(";"):
            if statement.strip():
                self._write(statement)
        rows = sorted(head.items())
        self._write_all("INSERT INTO head VALUES (?, ?)", [*rows, (SEAL, seal(rows))])
        self._write(f"PRAGMA user_version = {VERSION}")

    def _add(self, transfers: Iterable[Transfer], refusals: Iterable[Refusal]) -> None:
        self._write_all(
            "INSERT INTO traffic (round, site, direction, kind, payload, message) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [TRANSFER(transfer) for transfer in transfers],
        )
        self._write_all(
            "INSERT INTO refusals (round, site, reason, detail) VALUES (?, ?, ?, ?)",
            [(r.round, r.site, r.reason, r.detail[:DETAIL]) for r in refusals],
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._write("BEGIN IMMEDIATE")
        try:
            yield
            self._write("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                with suppress(sqlite3.Error):  # the first error is the one to report
                    self._connection.execute("ROLLBACK")
            raise

    def _write(self, statement: str, values: Sequence[object] = ()) -> None:
        try:
            self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: cannot be written ({error})") from error

    def _write_all(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: cannot be written ({error})") from error


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"bytes expected, got {value!r}")
    return value


def _marks(kind: type) -> str:
    return ", ".join("?" * len(kind.__dataclass_fields__))  # type: ignore[attr-defined]
