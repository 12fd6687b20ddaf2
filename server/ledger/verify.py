"""A ledger is checked whole when it is opened, before anything of it is used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from server.ledger.hash_chain import chain_hash, seal
from server.ledger.schema import VERSION
from shared.base.errors import LedgerError, WireError
from shared.protocol.entry import Entry

SEAL = "seal"  # the row of ``head`` that binds its other rows; the first chain starts from it


class Rows(Protocol):
    """What is checked: an open ledger file."""

    path: Path

    def head(self, key: str) -> bytes:
        """A row of the table ``head``."""

    def rows(self, query: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of a read-only query."""


def check(ledger: Rows) -> None:
    """Compare version, pages, seal, every round with its chain, and the rewinds with theirs.

    Raises:
        LedgerError: one of them does not fit; names the file and the row.
    """
    path, version = ledger.path, ledger.rows("PRAGMA user_version")[0][0]
    if version != VERSION:
        raise LedgerError(f"{path}: ledger version {VERSION} expected, got {version}")
    if (found := ledger.rows("PRAGMA quick_check(1)")[0][0]) != "ok":
        raise LedgerError(f"{path}: damaged ({found})")
    rest = ledger.rows("SELECT key, value FROM head WHERE key != ? ORDER BY key", (SEAL,))
    if ledger.head(SEAL) != seal(rest):
        raise LedgerError(f"{path}: table head, row {SEAL}: does not fit the other rows")
    _check_entries(ledger)


def _check_entries(ledger: Rows) -> None:
    path, before, rewinds = ledger.path, ledger.head(SEAL), []
    for expected, (round_, payload, chain) in enumerate(
        ledger.rows("SELECT round, payload, chain FROM entries ORDER BY round"), 1
    ):
        if round_ != expected:
            raise LedgerError(f"{path}: table entries: round {expected} is missing")
        before = chain_hash(before, payload, _contributions(ledger, expected))
        if before != chain:
            raise LedgerError(f"{path}: table entries, row {round_}: does not fit its chain")
        try:
            entry = Entry.decode(payload)
        except WireError as error:
            raise LedgerError(f"{path}: table entries, row {round_}: {error}") from error
        if entry.undoes:
            rewinds.append((round_, entry.back_to, entry.learning_rate))
    if ledger.rows("SELECT round, back_to, scale FROM rewinds ORDER BY round") != rewinds:
        raise LedgerError(f"{path}: table rewinds: does not fit the entries")


def _contributions(ledger: Rows, round_: int) -> list[tuple[Any, ...]]:
    return ledger.rows(
        "SELECT round, slot, site, examples, loss, seconds, differences, gradient "
        "FROM contributions WHERE round = ? ORDER BY slot",
        (round_,),
    )
