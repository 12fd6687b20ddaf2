"""The SQLite file of a ledger: how it is opened, read, and written in transactions."""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shared.base.errors import LedgerError

WAIT_S = 30  # for a lock of another process


class Database:
    """One connection to a ledger file; every error of SQLite names the file.

    A connection that is not ``writable`` leaves the file as it is (``mode=ro``). SQLite keeps a
    write-ahead log and an index of it beside a file in WAL mode, and creates both even to read. If
    the folder is read-only and there is no log, the file is whole and at rest: it is opened as
    immutable, and nothing beside it is needed.

    Raises:
        LedgerError: the file cannot be opened.
    """

    def __init__(self, path: Path, writable: bool = False) -> None:
        self.path = path
        parameters = "mode=rwc" if writable else _read_only(path)
        address = f"{path.absolute().as_uri()}?{parameters}"
        try:
            self._connection = sqlite3.connect(
                address, uri=True, isolation_level=None, timeout=WAIT_S, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise LedgerError(f"{path}: cannot be opened ({error})") from error

    def close(self) -> None:
        """Close the file; what is committed stays."""
        self._connection.close()

    def rows(self, query: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query.

        Raises:
            LedgerError: the file cannot be read.
        """
        try:
            return self._connection.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: cannot be read ({error})") from error

    def write(self, statement: str, values: Sequence[object] = ()) -> None:
        """Execute one statement.

        Raises:
            LedgerError: the file cannot be written.
        """
        try:
            self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: cannot be written ({error})") from error

    def write_all(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        """Execute one statement for each of some rows.

        Raises:
            LedgerError: the file cannot be written.
        """
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: cannot be written ({error})") from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all that is written in the block, or nothing of it if the block raises."""
        self.write("BEGIN IMMEDIATE")
        try:
            yield
            self.write("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                with suppress(sqlite3.Error):  # the first error is the one to report
                    self._connection.execute("ROLLBACK")
            raise


def _read_only(path: Path) -> str:
    log = path.with_name(f"{path.name}-wal")
    at_rest = not log.exists() or not log.stat().st_size
    return "immutable=1" if at_rest and not os.access(path.parent, os.W_OK) else "mode=ro"
