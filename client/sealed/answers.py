"""What a member has answered: one cohort for each attempt at a round, on the disk before it leaves.

Two sums of one attempt, of cohorts that differ in one site, would give that site's numbers. A
member that is killed and started again must therefore know what it has added up before.

    sealed.sqlite   answers: site, run, round, attempt, cohort (32 bytes)
"""

import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.base.errors import BudgetError

ANSWERS_FILE = "sealed.sqlite"
WAIT_S = 30
TABLE = """
CREATE TABLE IF NOT EXISTS answers (
    site TEXT NOT NULL, run BLOB NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    cohort BLOB NOT NULL,           -- SHA-256 of its parts, its sites and their answers
    PRIMARY KEY (site, run, round, attempt)
) WITHOUT ROWID
"""


class AnswerStore:
    """The open file of answers in a site's privacy folder.

    Raises:
        BudgetError: it cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder / ANSWERS_FILE
        self.path.touch(mode=0o600)
        self._database = sqlite3.connect(
            self.path, isolation_level=None, timeout=WAIT_S, check_same_thread=False
        )
        self.close = weakref.finalize(self, self._database.close)
        with self._errors():
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute(TABLE)

    def note(self, site: str, run: bytes, round_: int, attempt: int, cohort: bytes) -> bool:
        """Note durably that a site answers a cohort; False: it has answered another one.

        Raises:
            BudgetError: the file cannot be read or written.
        """
        name = site, run, round_, attempt
        with self._errors():
            self._database.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", (*name, cohort)
            )
            rows = self._database.execute(
                "SELECT cohort FROM answers "
                "WHERE site = ? AND run = ? AND round = ? AND attempt = ?",
                name,
            ).fetchall()
        return bool(rows) and bytes(rows[0][0]) == cohort

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise BudgetError(f"{self.path}: cannot be used ({error})") from error
