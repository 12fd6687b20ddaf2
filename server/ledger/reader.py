"""The questions that a ledger answers: each one has a name, and none writes."""

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from server.ledger.database import Database
from server.ledger.records import (
    CHOICES,
    LEFT_OUT,
    SERVER,
    CohortRow,
    Contribution,
    Evaluation,
    Metrics,
    RecordedSite,
    Refusal,
    Rewind,
    SiteNumbers,
    SnapshotRow,
    SumRow,
)
from server.ledger.summaries import RunSummaries
from server.ledger.verify import SEAL, check, has_table
from shared.base.errors import LedgerError
from shared.protocol.entry import MAGIC_REWIND, Entry
from shared.protocol.transfers import Transfer


class LedgerReader(RunSummaries):
    """A ledger's rows as records; the only home of SQL, with its bases ``RunSummaries``.

    Any number of readers may stand beside the one ``Ledger`` that writes.
    """

    writable = False

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(Database(path, self.writable))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a ledger and check all of it before anything of it is used.

        Raises:
            LedgerError: missing, not a ledger, or damaged; names the file and the row.
        """
        if not path.is_file():
            raise LedgerError(f"{path}: no ledger there")
        ledger = cls(path)
        try:
            check(ledger._database)
        except BaseException as error:
            ledger.close()
            if isinstance(error, TypeError | ValueError):  # a value is of another type
                raise LedgerError(f"{path}: damaged ({error})") from error
            raise
        return ledger

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def header(self, key: str) -> bytes:
        """The header row of a key: ``run``, ``config``, ``base`` or ``code``.

        Raises:
            LedgerError: there is none.
        """
        rows = self._rows("SELECT value FROM head WHERE key = ?", key)
        if not rows:
            raise LedgerError(f"{self.path}: table head has no row {key!r}")
        return _bytes(rows[0][0])

    @property
    def last_round(self) -> int:
        """The newest committed round; 0 at first."""
        return int(self._value("SELECT coalesce(max(round), 0) FROM entries"))

    def entry(self, round_: int) -> Entry:
        """The entry of a round, decoded."""
        return Entry.decode(self.payloads(round_ - 1, round_)[0])

    def payloads(self, after: int, to: int) -> list[bytes]:
        """The encoded entries of the rounds ``after`` + 1 to ``to``.

        Raises:
            LedgerError: some of these rounds are not there.
        """
        query = "SELECT payload FROM entries WHERE round > ? AND round <= ? ORDER BY round"
        rows = self._rows(query, after, to)
        if len(rows) != to - after:
            raise LedgerError(
                f"{self.path}: rounds {after + 1} to {to} expected, {len(rows)} are there"
            )
        return [_bytes(row[0]) for row in rows]

    def rewinds(self) -> list[Rewind]:
        """The rounds in which the run went back to an earlier one, in order."""
        return [Rewind(*row) for row in self._rows("SELECT * FROM rewinds ORDER BY round")]

    def is_rewind(self, round_: int) -> bool:
        """Whether a round is a rewind, or a pause after one: its entry takes no step."""
        query = "SELECT 1 FROM entries WHERE round = ? AND substr(payload, 1, 2) = ?"
        return bool(self._rows(query, round_, MAGIC_REWIND.to_bytes(2, "little")))

    def digest(self, round_: int) -> bytes | None:
        """The recorded digest of the parameters after a round; None if none was recorded."""
        rows = self._rows("SELECT digest FROM digests WHERE round = ?", round_)
        return _bytes(rows[0][0]) if rows else None

    def chain(self, round_: int) -> bytes:
        """The chain of a round, which binds all rounds before it too; of round 0, the seal.

        Raises:
            LedgerError: there is no such round.
        """
        if round_ == 0:
            return self.header(SEAL)
        rows = self._rows("SELECT chain FROM entries WHERE round = ?", round_)
        if not rows:
            raise LedgerError(f"{self.path}: table entries has no round {round_}")
        return _bytes(rows[0][0])

    def metrics(self, after: int = 0) -> list[Metrics]:
        """The metrics of all rounds after ``after``, in order."""
        rows = self._rows("SELECT * FROM metrics WHERE round > ? ORDER BY round", after)
        return [Metrics(*row) for row in rows]

    def metrics_of(self, round_: int) -> Metrics | None:
        """The metrics of a round; None if it is not committed."""
        rows = self._rows("SELECT * FROM metrics WHERE round = ?", round_)
        return Metrics(*rows[0]) if rows else None

    def site_losses(self, round_: int) -> list[float]:
        """The loss of each site that contributed to a round."""
        rows = self._rows(
            "SELECT loss FROM contributions WHERE round = ? AND loss NOT NULL", round_
        )
        return [loss for (loss,) in rows]

    def site_numbers(self, round_: int) -> dict[int, SiteNumbers]:
        """What each site contributed to a round, by slot, in slot order."""
        extra = ("NULL", "NULL", "")
        if has_table(self._database, "comparisons"):
            extra = ("k.before", "k.after", "LEFT JOIN comparisons k USING (round, slot)")
        query = (
            f"SELECT c.slot, c.examples, c.differences, {extra[0]}, {extra[1]} "
            f"FROM contributions c {extra[2]} WHERE c.round = ? ORDER BY c.slot"
        )
        return {
            slot: SiteNumbers(examples, np.frombuffer(values, "<f4").astype(np.float32), *losses)
            for slot, examples, values, *losses in self._rows(query, round_)
        }

    def slots_before_step(self, round_: int) -> set[int]:
        """The slots of the sites that measured, in a round, the batch of the next step."""
        query = "SELECT slot FROM comparisons WHERE round = ? AND before IS NOT NULL"
        return {slot for (slot,) in self._rows(query, round_)}

    def contributions(self, round_: int) -> list[Contribution]:
        """The contributions to a round, by slot; a gradient is its SHA-256, and has its length."""
        query = (
            "SELECT round, slot, site, examples, loss, seconds, differences, gradient "
            "FROM contributions WHERE round = ? ORDER BY slot"
        )
        lengths = self._lengths(round_)
        return [
            Contribution(
                *(at, slot, site, count, loss, s, _numbers(differences), _bytes(gradient)),
                length=lengths.get(slot),
            )
            for at, slot, site, count, loss, s, differences, gradient in self._rows(query, round_)
        ]

    def _lengths(self, round_: int) -> dict[int, float]:
        """The lengths of a round's gradients, by slot; none in ledgers of before version 6."""
        if not has_table(self._database, "lengths"):
            return {}
        query = "SELECT slot, length FROM lengths WHERE round = ?"
        return dict(self._rows(query, round_))

    def cohort_rows(self, round_: int, attempt: int) -> list[CohortRow]:
        """The sites whose sealed numbers an attempt adds up, by slot; none: none was written."""
        if not has_table(self._database, "cohorts"):
            return []
        query = "SELECT * FROM cohorts WHERE round = ? AND attempt = ? ORDER BY slot"
        return [CohortRow(*row) for row in self._rows(query, round_, attempt)]

    def sum_rows(self, round_: int) -> list[SumRow]:
        """The sums that a round's numbers came from, by member; none: it was not sealed."""
        if not has_table(self._database, "sums"):
            return []
        query = "SELECT * FROM sums WHERE round = ? ORDER BY member"
        return [SumRow(*row) for row in self._rows(query, round_)]

    def exclusions(self) -> dict[str, str]:
        """The sites that the run does without since a rewind that they caused, and why."""
        query = "SELECT site, round, detail FROM refusals WHERE reason = ? ORDER BY id"
        return {
            site: f"left out since round {round_}: {detail}"
            for site, round_, detail in self._rows(query, LEFT_OUT)
        }

    def loss_after(self, round_: int) -> float | None:
        """The sites' loss in the first round after ``round_``; None if there is none."""
        query = "SELECT loss FROM metrics WHERE round > ? ORDER BY round LIMIT 1"
        rows = self._rows(query, round_)
        return None if not rows or rows[0][0] is None else float(rows[0][0])

    def evaluations(self, after: int = -1) -> list[Evaluation]:
        """The server's evaluations of all rounds after ``after``, in order."""
        rows = self._rows("SELECT * FROM evaluations WHERE round > ? ORDER BY round", after)
        return [Evaluation(*row) for row in rows]

    def evaluation(self, round_: int) -> float | None:
        """The server's held-out loss after a round; None if it was not evaluated."""
        rows = self._rows("SELECT loss FROM evaluations WHERE round = ?", round_)
        return float(rows[0][0]) if rows else None

    def scores(self, site: str = SERVER) -> dict[str, list[tuple[int, float]]]:
        """Round and value of every score by its name.

        Args:
            site: a site's name, SERVER or ALL_SITES.
        """
        series: dict[str, list[tuple[int, float]]] = {}
        query = "SELECT name, round, value FROM scores WHERE site = ? ORDER BY name, round"
        for name, round_, value in self._rows(query, site):
            series.setdefault(name, []).append((round_, value))
        return series

    def scores_of_rounds(self, first: int, last: int) -> dict[int, dict[str, float]]:
        """The server's scores by round and name, of the rounds ``first`` to ``last`` that have."""
        by_round: dict[int, dict[str, float]] = {}
        query = "SELECT round, name, value FROM scores WHERE site = ? AND round BETWEEN ? AND ?"
        for round_, name, value in self._rows(query, SERVER, first, last):
            by_round.setdefault(round_, {})[name] = value
        return by_round

    def choices(self, classes: int) -> NDArray[np.int64] | None:
        """The confusion table (classes, classes) of the last evaluation: [class, choice].

        None: the run has none.
        """
        query = """SELECT name, value FROM scores WHERE site = ? AND round = (
            SELECT max(round) FROM scores WHERE site = ?)"""
        confusion = np.zeros((classes, classes), np.int64)
        for name, value in self._rows(query, CHOICES, CHOICES):
            row, _, column = name.partition(" ")
            confusion[int(row), int(column)] = int(value)
        return confusion if confusion.any() else None

    def snapshots(self) -> list[SnapshotRow]:
        """The snapshots that can be read, in order of their rounds."""
        query = "SELECT round, bytes, file, digest FROM snapshots ORDER BY round"
        return [SnapshotRow(*row) for row in self._rows(query)]

    def snapshot(self, round_: int) -> SnapshotRow | None:
        """The snapshot of a round; None if there is none."""
        query = "SELECT round, bytes, file, digest FROM snapshots WHERE round = ?"
        rows = self._rows(query, round_)
        return SnapshotRow(*rows[0]) if rows else None

    def sites(self) -> list[RecordedSite]:
        """Every site that was accepted, by slot."""
        rows = self._rows("SELECT site, slot, device, examples FROM sites ORDER BY slot")
        return [RecordedSite(*row) for row in rows]

    def refusals(self) -> list[Refusal]:
        """Every refused or missing reply, in the order in which they were written."""
        rows = self._rows("SELECT round, site, reason, detail FROM refusals ORDER BY id")
        return [Refusal(*row) for row in rows]

    def traffic(self) -> list[Transfer]:
        """Every message, in the order in which they were written."""
        query = "SELECT round, site, direction, kind, payload, message FROM traffic ORDER BY id"
        return [Transfer(*row) for row in self._rows(query)]


def _numbers(value: Any) -> NDArray[np.float32]:  # noqa: ANN401
    return np.frombuffer(_bytes(value), "<f4").astype(np.float32)


def _bytes(value: Any) -> bytes:  # noqa: ANN401
    if not isinstance(value, bytes):
        raise TypeError(f"bytes expected, got {value!r}")
    return value
