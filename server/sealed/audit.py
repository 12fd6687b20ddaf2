"""The entries of a run with sealed sums are made anew from the sums that the ledger keeps."""

from server.aggregation.combine import Combiner
from server.ledger.reader import LedgerReader
from server.sealed.sums import open_sums, pool
from shared.base.errors import LedgerError, WireError


def verify_sums(ledger: LedgerReader, combiner: Combiner) -> int:
    """Interpolate the sums of every sealed round again, and compare its entry; return how many.

    Args:
        ledger: of the run.
        combiner: of the run's configuration; its replica may be at any round.

    Raises:
        LedgerError: an entry, or the sites in it, do not follow from sums; names the round.
    """
    if not combiner.config.privacy.is_sealed:
        return 0
    rounds = [k for k in range(1, ledger.last_round + 1) if ledger.entry(k).back_to is None]
    for round_ in rounds:
        if fault := _find_fault(ledger, combiner, round_):
            raise LedgerError(f"{ledger.path}: table sums, round {round_}: {fault}")
    return len(rounds)


def _find_fault(ledger: LedgerReader, combiner: Combiner, round_: int) -> str:
    """Why a round does not follow from its sums, in words; empty if it does."""
    if not (rows := ledger.sum_rows(round_)):
        return "the sums of its committee are missing"
    cohort = ledger.cohort_rows(round_, rows[0].attempt)
    if [row.slot for row in cohort] != [each.slot for each in ledger.contributions(round_)]:
        return "other sites contributed than its cohort has"
    try:
        opened = open_sums(rows, 1 + max(row.part for row in cohort))
    except (WireError, ValueError) as error:
        return str(error)
    entry = combiner.entry(round_, 0.0, pool(combiner.config, cohort, opened.steps))
    pairs = zip(entry.slots if entry else (), ledger.entry(round_).slots, strict=True)
    if any(a.differences.tobytes() != b.differences.tobytes() for a, b in pairs):
        return "the entry has other numbers than they give"
    return ""
