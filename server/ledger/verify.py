"""The hash chain that binds a ledger's rows, and the check of it when a ledger is opened."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from server.ledger.database import Database
from server.ledger.records import OLDEST, VERSION
from shared.base.errors import LedgerError, WireError
from shared.protocol.entry import Entry, is_dense

# chain 0 = seal: SHA-256 of all other header rows
# chain r = SHA-256(chain r - 1 | entry r, lasting form | contributions of round r, by slot |
#                   comparisons of round r, by slot | lengths of round r, by slot |
#                   cohorts of round r, by attempt and slot | sums of round r, by attempt and
#                   member)
SEAL = "seal"  # the header row that binds the other ones
OF_ENTRIES = ("contributions", "metrics")  # tables whose rows are written with a round's entry
OPTIONAL = {  # the same, which ledgers of former versions lack, and their columns
    "comparisons": "round, slot, before, after",
    "lengths": "round, slot, length",
}
LATER = ("digests", "evaluations", "scores", "snapshots")  # after it; round 0 is the base model
ATTEMPTS = ("traffic", "refusals", "skips")  # also of rounds that are open: two with staleness


def seal(header: Iterable[tuple[str, bytes]]) -> bytes:
    """SHA-256 of header rows, which must be sorted by key."""
    digest = sha256()
    for key, value in header:
        digest.update(f"{key} {len(value)} ".encode() + value)
    return digest.digest()


def chain_hash(
    before: bytes,
    payload: bytes,
    contributions: Sequence[Sequence[object]],
    more: Sequence[Sequence[object]] = (),
) -> bytes:
    """The chain of a round: SHA-256 of the chain before, the entry and the contributions.

    A dense gradient is bound by its digest, so that it can be dropped without breaking the chain.

    Args:
        before: chain of the round before, or the seal.
        payload: the encoded entry.
        contributions: rows of the round, sorted by slot.
        more: rows of comparisons, lengths, cohorts and sums; without any, a round has the chain
            of former ledgers.
    """
    digest = sha256(before + lasting_payload(payload))
    for row in [*contributions, *more]:
        digest.update(repr(tuple(row)).encode())
    return digest.digest()


def lasting_payload(payload: bytes) -> bytes:
    """An encoded entry in the form that is never dropped: a digest replaces a dense gradient."""
    try:
        return Entry.decode(payload).without_payload().encode() if is_dense(payload) else payload
    except WireError:
        return payload  # damaged: no chain fits it


def check(database: Database) -> None:
    """Check version, pages, seal, the chain of every round, the rewinds, and all other rows.

    Raises:
        LedgerError: one of them does not fit; names the file and the row.
    """
    path, version = database.path, database.rows("PRAGMA user_version")[0][0]
    if not OLDEST <= version <= VERSION:
        raise LedgerError(f"{path}: ledger version {OLDEST} to {VERSION} expected, got {version}")
    if (damage := database.rows("PRAGMA quick_check(1)")[0][0]) != "ok":
        raise LedgerError(f"{path}: damaged ({damage})")
    header = dict(database.rows("SELECT key, value FROM head ORDER BY key"))
    recorded = header.pop(SEAL, None)
    if recorded is None or recorded != seal(header.items()):
        raise LedgerError(f"{path}: table head, row {SEAL}: does not fit the other rows")
    rewinds = _check_entries(database, recorded)
    if database.rows("SELECT round, back_to, scale FROM rewinds ORDER BY round") != rewinds:
        raise LedgerError(f"{path}: table rewinds: does not fit the entries")
    _check_rounds(database)
    _check_metrics(database)


def _check_rounds(database: Database) -> None:
    """Find rows of rounds that the entries do not reach, undone ones included.

    The last entry may have been deleted: what else was written of its round is still there.
    """
    last = int(database.rows("SELECT coalesce(max(round), 0) FROM entries")[0][0])
    whole = [*OF_ENTRIES, *(table for table in OPTIONAL if has_table(database, table))]
    sealed = {"sums": last, "cohorts": last + 1} if has_table(database, "sums") else {}
    for tables, first, most in (
        (whole, 1, last),
        (LATER, 0, last),
        (ATTEMPTS, 0, last + 2),
        *(((table,), 1, most) for table, most in sealed.items()),
    ):
        for table in tables:
            query = f"SELECT round FROM {table} WHERE round < ? OR round > ? ORDER BY round LIMIT 1"
            for (round_,) in database.rows(query, (first, most)):
                raise LedgerError(
                    f"{database.path}: table {table}, round {round_}: the entries end with round "
                    f"{last}; a row was added, or the entries after it were deleted"
                )


def _check_metrics(database: Database) -> None:
    """Find rounds whose row of metrics is missing, or counts other sites than contributed."""
    query = (
        "SELECT e.round, m.clients, (SELECT count(*) FROM contributions c WHERE c.round = e.round) "
        "FROM entries e LEFT JOIN metrics m USING (round) ORDER BY e.round"
    )
    for round_, clients, contributed in database.rows(query):
        if clients is None:
            raise LedgerError(f"{database.path}: table metrics: round {round_} is missing")
        if clients != contributed:
            raise LedgerError(
                f"{database.path}: table metrics, round {round_}: {contributed} sites contributed, "
                f"got {clients}"
            )


def _check_entries(database: Database, before: bytes) -> list[tuple[int, int | None, float]]:
    """Check every entry against its chain; return round, target and scale of the rewinds."""
    path, rewinds = database.path, []
    tables = [table for table in OPTIONAL if has_table(database, table)]
    entries = database.rows("SELECT round, payload, chain FROM entries ORDER BY round")
    for expected, (round_, payload, link) in enumerate(entries, 1):
        if round_ != expected:
            raise LedgerError(f"{path}: table entries: round {expected} is missing")
        more = [row for table in tables for row in rows_of_round(database, table, expected)]
        more += rows_of_sums(database, expected)
        before = chain_hash(before, payload, _contributions(database, expected), more)
        if before != link:
            raise LedgerError(f"{path}: table entries, row {round_}: does not fit its chain")
        try:
            entry = Entry.decode(payload)
        except WireError as error:
            raise LedgerError(f"{path}: table entries, row {round_}: {error}") from error
        if entry.undoes:
            rewinds.append((round_, entry.back_to, entry.learning_rate))
    return rewinds


def _contributions(database: Database, round_: int) -> list[tuple[Any, ...]]:
    return database.rows(
        "SELECT round, slot, site, examples, loss, seconds, differences, gradient "
        "FROM contributions WHERE round = ? ORDER BY slot",
        (round_,),
    )


def has_table(database: Database, name: str) -> bool:
    """Whether a ledger has a table that those of former versions do not."""
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return bool(database.rows(query, (name,)))


def rows_of_sums(database: Database, round_: int) -> list[tuple[Any, ...]]:
    """The rows of cohorts and of sums of all attempts at a round; none in a former ledger."""
    if not has_table(database, "sums"):
        return []
    return [
        *database.rows("SELECT * FROM cohorts WHERE round = ? ORDER BY attempt, slot", (round_,)),
        *database.rows("SELECT * FROM sums WHERE round = ? ORDER BY attempt, member", (round_,)),
    ]


def rows_of_round(database: Database, table: str, round_: int) -> list[tuple[Any, ...]]:
    """The rows of a round in a table of OPTIONAL, by slot."""
    query = f"SELECT {OPTIONAL[table]} FROM {table} WHERE round = ? ORDER BY slot"
    return database.rows(query, (round_,))
