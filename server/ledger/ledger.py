"""The append-only record of a run: one SQLite file, one transaction per round."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, fields
from operator import attrgetter
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from server.ledger.reader import LedgerReader
from server.ledger.records import (
    CHOICES,
    TABLES,
    VERSION,
    CohortRow,
    Contribution,
    Metrics,
    Refusal,
    SumRow,
)
from server.ledger.verify import SEAL, chain_hash, has_table, lasting_payload, rows_of_sums, seal
from shared.base.errors import GapError, LedgerError
from shared.protocol.entry import MAGIC_DENSE, Entry
from shared.protocol.messages import Hello
from shared.protocol.transfers import Transfer

TRANSFER = attrgetter(*(field.name for field in fields(Transfer)))  # astuple copies, and is slow
DETAIL_CHARACTERS = 500  # a refusal's detail may come from a site, and is cut to this length


class Ledger(LedgerReader):
    """The one writer of a run's ledger; all that it reads it inherits.

    Invariants: the rounds 1 to ``last_round`` have no gap, and each is there whole or not at all. A
    row of ``entries`` is never changed, except that a digest may replace a dense gradient. Its
    ``chain`` binds the entry, the contributions that it was made from, and all rounds before.
    Whoever applies an entry has read it back from here.
    """

    writable = True

    @classmethod
    def create(cls, path: Path, header: Mapping[str, bytes]) -> Self:
        """Make a new ledger.

        Args:
            path: of the file.
            header: what the run is: ``run``, ``config``, ``base`` (a digest), ``code``.

        Raises:
            LedgerError: the file exists.
        """
        if path.exists():
            raise LedgerError(
                f"{path}: there is a ledger already; resume it or choose another name"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.draft")
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)  # its numbers tell as much as the sites' data
        with closing(cls(draft)) as ledger:
            ledger._database.write("PRAGMA journal_mode = MEMORY")
            ledger._fill(header)
        draft.rename(path)  # so that there is a whole ledger or none
        ledger = cls(path)
        ledger._database.write("PRAGMA journal_mode = WAL")
        ledger._database.write("PRAGMA synchronous = FULL")
        return ledger

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a ledger to go on with it; as ``LedgerReader.open`` does."""
        ledger = super().open(path)
        ledger._database.write("PRAGMA synchronous = FULL")
        return ledger

    def commit(  # noqa: PLR0913, PLR0917  (what a round is)
        self,
        entry: Entry,
        contributions: Sequence[Contribution],
        transfers: Iterable[Transfer],
        metrics: Metrics,
        refusals: Iterable[Refusal] = (),
        reason: str = "",
        sums: Sequence[SumRow] = (),
    ) -> Entry:
        """Write a round in one transaction and return its entry as read back.

        ``reason`` says of a rewind why it was needed, ``sums`` are those that the numbers of a
        sealed round came from.

        Raises:
            GapError: the entry does not follow the last one.
        """
        if entry.round != self.last_round + 1:
            raise GapError(f"{self.path}: round {self.last_round + 1} expected, got {entry.round}")
        payload, rows = entry.encode(), [c.row() for c in contributions]
        compared = [row for c in contributions if (row := c.comparison()) is not None]
        lengths = [row for c in contributions if (row := c.length_row()) is not None]
        lengths = lengths if has_table(self._database, "lengths") else []
        with self._database.transaction():
            self._insert("sums", sums)
            more = [*compared, *lengths, *rows_of_sums(self._database, entry.round)]
            chain = chain_hash(self.chain(entry.round - 1), payload, rows, more)
            self._insert("entries", [(entry.round, payload, chain)])
            self._insert("contributions", rows)
            self._insert("comparisons", compared)
            self._insert("lengths", lengths)
            self._insert("metrics", [astuple(metrics)])
            if entry.undoes:
                rewind = (entry.round, entry.back_to, entry.learning_rate, reason)
                self._insert("rewinds", [rewind])
            self._insert_messages(transfers, refusals)
        return self.entry(entry.round)

    def commit_cohort(self, rows: Sequence[CohortRow]) -> None:
        """Write whose numbers an attempt adds up, once, before any member is asked for its sum."""
        with self._database.transaction():
            self._insert("cohorts", rows)

    def note(self, transfers: Iterable[Transfer], refusals: Iterable[Refusal]) -> None:
        """Write traffic and refusals of rounds that are committed or given up."""
        with self._database.transaction():
            self._insert_messages(transfers, refusals)

    def skip(
        self,
        round_: int,
        detail: str,
        transfers: Iterable[Transfer] = (),
        refusals: Iterable[Refusal] = (),
    ) -> None:
        """Write that an attempt at a round had too few valid replies, and what it cost."""
        with self._database.transaction():
            self._database.write(
                "INSERT INTO skips (round, detail) VALUES (?, ?)", (round_, detail)
            )
            self._insert_messages(transfers, refusals)

    def record_site(self, hello: Hello) -> None:
        """Write how a site introduced itself; only the last introduction stays."""
        row = (hello.site, hello.slot, hello.device, hello.dtype, hello.threads, hello.examples)
        self._insert("sites", [row], "REPLACE")

    def record_digest(self, round_: int, digest: bytes) -> None:
        """Write the digest of the parameters after a round; the first one stays."""
        self._insert("digests", [(round_, digest)], "IGNORE")

    def record_evaluation(self, round_: int, loss: float) -> None:
        """Write the held-out loss after a round; the first one stays.

        SQLite has no NaN: a loss that is NaN is written as infinity.
        """
        value = math.inf if math.isnan(loss) else loss
        self._insert("evaluations", [(round_, value)], "IGNORE")

    def record_scores(self, round_: int, site: str, scores: Mapping[str, float]) -> None:
        """Write the scores of a site, SERVER or ALL_SITES after a round; the first ones stay."""
        rows = [(round_, site, name, value) for name, value in scores.items()]
        self._insert("scores", rows, "IGNORE")

    def record_choices(self, round_: int, confusion: NDArray[np.int64]) -> None:
        """Write the cells of a confusion table (k, k) that are not 0; the first ones stay.

        A cell is a row of the table ``scores``: its name is "class choice".
        """
        cells = [(int(row), int(column)) for row, column in np.argwhere(confusion)]
        rows = [(round_, CHOICES, f"{a} {b}", int(confusion[a, b])) for a, b in cells]
        self._insert("scores", rows, "IGNORE")

    def record_snapshot(self, round_: int, file: str, size: int, digest: bytes) -> None:
        """Write that the snapshot of a round is in ``file``, and what its bytes are."""
        self._insert("snapshots", [(round_, file, size, digest)], "REPLACE")

    def forget_snapshot(self, round_: int) -> None:
        """Delete the row of a snapshot whose file is of no use."""
        self._database.write("DELETE FROM snapshots WHERE round = ?", (round_,))

    def drop_gradients(self, to: int) -> None:
        """Replace the dense gradients of the rounds up to ``to`` by their digests."""
        query = "SELECT payload, round FROM entries WHERE round <= ? AND substr(payload, 1, 2) = ?"
        entries = self._rows(query, to, MAGIC_DENSE.to_bytes(2, "little"))
        with self._database.transaction():
            rows = [(lasting_payload(payload), round_) for payload, round_ in entries]
            self._database.write_all("UPDATE entries SET payload = ? WHERE round = ?", rows)

    def _fill(self, header: Mapping[str, bytes]) -> None:
        """Create the tables, and write the header rows and their seal."""
        rows = sorted(header.items())
        with self._database.transaction():
            for statement in filter(str.strip, TABLES.split(";")):
                self._database.write(statement)
            self._insert("head", [*rows, (SEAL, seal(rows))])
            self._database.write(f"PRAGMA user_version = {VERSION}")

    def _insert_messages(self, transfers: Iterable[Transfer], refusals: Iterable[Refusal]) -> None:
        self._database.write_all(
            "INSERT INTO traffic (round, site, direction, kind, payload, message) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [TRANSFER(transfer) for transfer in transfers],
        )
        self._database.write_all(
            "INSERT INTO refusals (round, site, reason, detail) VALUES (?, ?, ?, ?)",
            [(r.round, r.site, r.reason, r.detail[:DETAIL_CHARACTERS]) for r in refusals],
        )

    def _insert(
        self, table: str, rows: Sequence[Sequence[object]], conflict: str = "ABORT"
    ) -> None:
        """Insert whole rows; ``conflict`` says what happens to a row whose key is there."""
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            statement = f"INSERT OR {conflict} INTO {table} VALUES ({marks})"
            self._database.write_all(statement, rows)
