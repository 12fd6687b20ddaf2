"""How a site's replica gets to the server's round: by missed entries, or from a snapshot."""

import logging
from dataclasses import dataclass

from server.ledger.ledger import Ledger
from server.ledger.lineage import entries_between, lineage, newest_dropped
from server.ledger.snapshots import Snapshots
from shared.base.errors import GapError, SnapshotError
from shared.config.schema import Config
from shared.replica.replica import Replica
from shared.replica.snapshot import encode_snapshot

LOG = logging.getLogger("dandelion")
ENTRY_OVERHEAD = 4  # bytes of a length before each entry in a request


@dataclass(frozen=True)
class CatchUp:
    """The part of a request that brings the site's replica to the round that it measures at."""

    entries: list[bytes]
    snapshot: bytes | None = None
    reset: bool = False  # start from the snapshot or the base model, not from the site's replica


def catch_up(
    config: Config, ledger: Ledger, snapshots: Snapshots, site_round: int | None, to: int
) -> CatchUp:
    """Choose how a replica gets from ``site_round`` to round ``to``, as ``catch-up`` says.

    ``site_round`` is None if the site has no replica of this run. A round that was undone is of no
    use either. ``auto`` takes whichever is fewer bytes. If no snapshot can be used, entries are
    replayed from the base model; if a gradient was dropped, only a snapshot can be used.

    Raises:
        GapError: a gradient was dropped, and no snapshot that is late enough can be used.
    """
    unusable = site_round is None or site_round not in lineage(ledger, to)
    start = 0 if site_round is None or unusable else site_round
    missed = entries_between(ledger, start, to)
    dropped = newest_dropped(missed)
    newest = (
        None if config.federation.catch_up == "replay" and not dropped else snapshots.latest(to)
    )
    if dropped and (newest is None or newest.round < dropped):
        raise GapError(
            f"no snapshot of round {dropped}, whose gradient was dropped, or a later one"
        )
    if newest is None or newest.round <= start:
        return CatchUp(missed, reset=unusable)
    round_, size = newest.round, newest.size
    rest = entries_between(ledger, round_, to)
    if not dropped and config.federation.catch_up == "auto" and _size(missed) <= size + _size(rest):
        return CatchUp(missed, reset=unusable)
    try:
        return CatchUp(rest, snapshots.read(round_), reset=True)
    except SnapshotError as error:
        LOG.warning("not used: %s", error)
        snapshots.forget(round_)
        return catch_up(config, ledger, snapshots, site_round, to)


def full_parameters(replica: Replica, run: bytes) -> CatchUp:
    """The whole state of a replica, as ``downlink = dense`` sends it every round."""
    return CatchUp([], encode_snapshot(replica, run), reset=True)


def _size(entries: list[bytes]) -> int:
    return sum(len(entry) + ENTRY_OVERHEAD for entry in entries)
