"""The ledger of what a site's data have paid: one row for each distinct answer that left.

A row is on the disk before its reply leaves, so that a process which is killed has spent at least
what was seen. Rows are never changed. Each has a hash of all before it, and a second file counts
them: a ledger that was restored from an older copy has fewer rows than that and is refused.

    budget.sqlite   sets: data by the fingerprint of their documents; a grown set has a parent
                    events: run, round, request, noise, rate, numbers, chain
    budget.counter  | number of the last event | its chain |, written between row and reply
    budget.lock     locked while one process spends
"""

import fcntl
import sqlite3
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from shared.base.errors import BudgetError
from shared.base.files import write_atomically
from shared.privacy.accounting import Rounds

BUDGET_FILE, COUNTER_FILE, LOCK_FILE = "budget.sqlite", "budget.counter", "budget.lock"
WAIT_S = 30
TABLES = """
CREATE TABLE IF NOT EXISTS sets (
    id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
    unit TEXT NOT NULL, units INTEGER NOT NULL, parent INTEGER
);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY,     -- 1, 2, 3 … without a gap
    data INTEGER NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL,
    request BLOB NOT NULL,          -- SHA-256 of all that the answer depends on
    noise REAL NOT NULL,            -- in clips, 0 of raw numbers
    rate_bits INTEGER NOT NULL,     -- batches of rate 2^-rate_bits
    numbers INTEGER NOT NULL, time TEXT NOT NULL,
    chain BLOB NOT NULL             -- SHA-256 of the chain before and of this row and its set
);
CREATE INDEX IF NOT EXISTS events_request ON events (data, request);
"""
START = bytes(32)  # the chain before the first event
OF_SET = """
SELECT noise, rate_bits, count(*) FROM events WHERE data = ? AND (? = '' OR run = ?)
GROUP BY noise, rate_bits
"""


@dataclass(frozen=True)
class DataSet:
    """A data set as the budget knows it."""

    id: int  # 0: not written yet
    fingerprint: str
    name: str  # of a site's own data; empty: a run dealt them
    unit: str  # what may be added or removed
    units: int  # how many there are
    parent: int | None = None  # the set that it grew from, whose events it inherits


@dataclass(frozen=True)
class Event:
    """An answer that leaves: what it costs, and what names it."""

    data: int  # the set's id
    run: str
    round: int
    request: bytes  # 32
    noise: float
    rate_bits: int
    numbers: int


class BudgetLedger:
    """The open budget of a site's privacy folder.

    Raises:
        BudgetError: it is damaged, or older than its counter says.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path, self._counter = folder / BUDGET_FILE, folder / COUNTER_FILE
        self._lock = folder / LOCK_FILE
        if not self.path.exists():
            self._refuse_if_counted()
            self.path.touch(mode=0o600)
        self._database = sqlite3.connect(
            self.path, isolation_level=None, timeout=WAIT_S, check_same_thread=False
        )
        self.close = weakref.finalize(self, self._database.close)
        with self._hold_lock():
            self._execute("PRAGMA journal_mode = WAL")
            self._execute("PRAGMA synchronous = FULL")
            for statement in filter(str.strip, TABLES.split(";")):
                self._execute(statement)
            self._check()

    def sets(self) -> list[DataSet]:
        """All data sets, oldest first."""
        return [DataSet(*row) for row in self._execute("SELECT * FROM sets ORDER BY id")]

    def register(self, new: DataSet) -> DataSet:
        """Return the data set with the fingerprint of ``new``; note it if it is none.

        Raises:
            BudgetError: a set of that name is known with other documents.
        """
        with self._hold_lock():
            known = {each.fingerprint: each for each in self.sets()}
            if new.fingerprint in known:
                return known[new.fingerprint]
            if same := [each for each in known.values() if new.name and each.name == new.name]:
                raise BudgetError(
                    f"{new.name}: its documents are not those that the budget knows "
                    f"({same[-1].fingerprint[:12]}, now {new.fingerprint[:12]}). What was spent "
                    "must not be forgotten: 'dandelion client budget adopt' carries it on"
                )
            return self._add_set(new)

    def adopt(self, new: DataSet) -> DataSet:
        """Let changed documents inherit all that the newest set of their name has spent.

        Raises:
            BudgetError: no set has the name, or the documents are known already.
        """
        with self._hold_lock():
            same = [each for each in self.sets() if each.name == new.name]
            if not same:
                raise BudgetError(f"{new.name}: the budget has no data of this name")
            if any(each.fingerprint == new.fingerprint for each in self.sets()):
                raise BudgetError(f"{new.name}: these documents are known already")
            return self._add_set(replace(new, parent=same[-1].id))

    def spend(self, event: Event, check: Callable[[], None] = lambda: None) -> bool:
        """Commit an event, durably; return False if the same answer was paid for already.

        Args:
            event: what leaves.
            check: raises if the answer may not leave. No other process spends between it and the
                commit, so what it reads here still holds then.

        Raises:
            BudgetError: the ledger is damaged or was rolled back while it was open.
        """
        with self._hold_lock():
            self._check_counter()
            query = "SELECT 1 FROM events WHERE data = ? AND request = ?"
            if self._execute(query, (event.data, event.request)):
                return False
            check()
            number, before = self._last()
            row = self._row(number + 1, event)
            chain = sha256(before + repr(row).encode() + self._lineage_text(event.data)).digest()
            marks = ", ".join("?" * (len(row) + 1))
            self._execute(f"INSERT INTO events VALUES ({marks})", (*row, chain))
            self._write_counter(number + 1, chain)
            return True

    def spent(self, data: int, run: str = "") -> list[Rounds]:
        """The events of a set and of those that it grew from, by kind; or those of one run."""
        count: Counter[tuple[float, int]] = Counter()
        for at in self._lineage(data):
            for noise, bits, some in self._execute(OF_SET, (at, run, run)):
                count[noise, bits] += some
        return [Rounds(some, *how) for how, some in sorted(count.items())]

    def numbers(self, data: int) -> int:
        """How many numbers have left of a set and of those that it grew from."""
        query = "SELECT coalesce(sum(numbers), 0) FROM events WHERE data = ?"
        return sum(int(self._execute(query, (at,))[0][0]) for at in self._lineage(data))

    def runs(self, data: int) -> list[str]:
        """The runs that a set has answered, in their order."""
        query = "SELECT run FROM events WHERE data = ? GROUP BY run ORDER BY min(number)"
        return [run for (run,) in self._execute(query, (data,))]

    def _add_set(self, new: DataSet) -> DataSet:
        """Write a set, with the next id."""
        self._execute("INSERT INTO sets VALUES (NULL, ?, ?, ?, ?, ?)", astuple(new)[1:])
        return next(each for each in self.sets() if each.fingerprint == new.fingerprint)

    def _lineage(self, data: int) -> list[int]:
        """The ids of a set and of all that it grew from."""
        parents = {each.id: each.parent for each in self.sets()}
        line: list[int] = []
        at: int | None = data
        while at is not None and at not in line:
            line.append(at)
            at = parents.get(at)
        return line

    def _lineage_text(self, data: int) -> bytes:
        sets = {each.id: each for each in self.sets()}
        return repr([sets.get(at) for at in self._lineage(data)]).encode()

    @staticmethod
    def _row(number: int, event: Event) -> tuple[Any, ...]:
        e, now = event, datetime.now(UTC).isoformat(timespec="seconds")
        about = number, e.data, e.run, e.round, e.request
        return (*about, float(e.noise), e.rate_bits, e.numbers, now)

    def _last(self) -> tuple[int, bytes]:
        rows = self._execute("SELECT number, chain FROM events ORDER BY number DESC LIMIT 1")
        return (rows[0][0], bytes(rows[0][1])) if rows else (0, START)

    def _check(self) -> None:
        """Check every row's chain, and that no row is missing at the end."""
        chain, lineages = START, {each.id: self._lineage_text(each.id) for each in self.sets()}
        for expected, (*row, own) in enumerate(
            self._execute("SELECT * FROM events ORDER BY number"), 1
        ):
            text = repr(tuple(row)).encode() + lineages.get(row[1], b"")
            chain = sha256(chain + text).digest()
            if row[0] != expected or chain != own:
                raise BudgetError(
                    f"{self.path}: table events, row {expected}: does not fit its chain; restore "
                    "the newest copy, or leave these data out of private runs"
                )
        self._check_counter()

    def _check_counter(self) -> None:
        """Compare with the counter; take note of a row whose writer was killed before it counted.

        Raises:
            BudgetError: rows are missing, or they are not those that were counted.
        """
        counted, (last, newest) = self._read_counter(), self._last()
        number, chain = counted
        rows = self._execute("SELECT chain FROM events WHERE number = ?", (number,))
        if number and (not rows or bytes(rows[0][0]) != chain):
            raise BudgetError(
                f"{self.path}: {number} answers were counted, the ledger has {last} that fit: it "
                "was rolled back or replaced. Restore the newest copy; spent privacy does not "
                "come back"
            )
        if last > number:
            self._write_counter(last, newest)

    def _refuse_if_counted(self) -> None:
        if self._counter.exists():
            raise BudgetError(f"{self.path}: missing, and {self._counter.name} has counted answers")

    def _read_counter(self) -> tuple[int, bytes]:
        try:
            number, chain = self._counter.read_text().split()
            return int(number), bytes.fromhex(chain)
        except FileNotFoundError:
            if self._last()[0] > 1:  # the first row may have been written a moment ago
                raise BudgetError(f"{self._counter}: missing beside {self.path.name}") from None
            return 0, START
        except ValueError as error:
            raise BudgetError(f"{self._counter}: a number and a hash expected") from error

    def _write_counter(self, number: int, chain: bytes) -> None:
        write_atomically(self._counter, f"{number} {chain.hex()}\n".encode())

    def _execute(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise BudgetError(f"{self.path}: cannot be used ({error})") from error

    @contextmanager
    def _hold_lock(self) -> Iterator[None]:
        """One process at a time, also between a row and its counter."""
        with self._lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
