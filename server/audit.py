"""What must hold of a ledger file before anything of it is used."""

from collections.abc import Sequence
from typing import Any, Protocol

from server.chain import chained, seal
from server.schema import VERSION
from shared.entry import Entry
from shared.errors import LedgerError, WireError

SEAL = "seal"  # the row of ``head`` that binds its other rows; the first chain starts from it
CONTRIBUTIONS = """
SELECT round, slot, site, examples, loss, seconds, differences, gradient
FROM contributions WHERE round = ? ORDER BY slot"""


class Rows(Protocol):
    """A file of tables that can be read."""

    path: Any

    def rows(self, query: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query."""


def check(ledger: Rows) -> None:
    """Read the whole file: version, pages, head, every entry with its chain, the rewinds.

    Raises:
        LedgerError: not a ledger of this version, or damaged; names the file and the row.
    """
    version = ledger.rows("PRAGMA user_version")[0][0]
    if version != VERSION:
        raise LedgerError(f"{ledger.path}: ledger version {VERSION} expected, got {version}")
    if (found := ledger.rows("PRAGMA quick_check(1)")[0][0]) != "ok":
        raise LedgerError(f"{ledger.path}: damaged ({found})")
    rewinds = _check_entries(ledger, _check_head(ledger))
    if ledger.rows("SELECT round, back_to, scale FROM rewinds ORDER BY round") != rewinds:
        raise LedgerError(f"{ledger.path}: table rewinds: does not fit the entries")


def _check_head(ledger: Rows) -> bytes:
    """The seal, which is what the first chain starts from."""
    rows = ledger.rows("SELECT key, value FROM head ORDER BY key")
    found = [value for key, value in rows if key == SEAL]
    if not found:
        raise LedgerError(f"{ledger.path}: head has no {SEAL!r}")
    if found[0] != seal([row for row in rows if row[0] != SEAL]):
        raise LedgerError(f"{ledger.path}: table head, row {SEAL}: does not fit the other rows")
    return bytes(found[0])


def _check_entries(ledger: Rows, before: bytes) -> list[tuple[int, int, float]]:
    """Compare every chain; return round, target and scale of the rewinds."""
    rewinds = []
    for expected, (round_, payload, chain) in enumerate(
        ledger.rows("SELECT round, payload, chain FROM entries ORDER BY round"), 1
    ):
        if round_ != expected:
            raise LedgerError(f"{ledger.path}: table entries: round {expected} is missing")
        before = chained(before, payload, ledger.rows(CONTRIBUTIONS, (expected,)))
        if before != chain:
            raise LedgerError(f"{ledger.path}: table entries, row {round_}: does not fit its chain")
        try:
            entry = Entry.decode(payload)
        except WireError as error:
            raise LedgerError(f"{ledger.path}: table entries, row {round_}: {error}") from error
        if entry.back_to is not None:
            rewinds.append((round_, entry.back_to, entry.learning_rate))
    return rewinds
