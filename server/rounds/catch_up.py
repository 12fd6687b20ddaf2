"""What a site needs to be at the server's round: missed entries, or a snapshot and the rest."""

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
    """Sent with a request so that the site's replica is at the round before it."""

    entries: list[bytes]
    snapshot: bytes | None = None
    reset: bool = False  # forget what the replica is; start from the snapshot or the base model


def catch_up(
    config: Config, ledger: Ledger, snapshots: Snapshots, site_round: int | None, to: int
) -> CatchUp:
    """The way from a site's round (None: unusable) to round ``to`` that ``catch-up`` asks for.

    ``auto`` takes whichever is fewer bytes. Where no snapshot can be used, replay is the only way;
    where a gradient was dropped, a snapshot is. A round that was undone is unusable.

    Raises:
        GapError: a gradient was dropped, and no snapshot that is late enough can be used.
    """
    unusable = site_round is None or site_round not in lineage(ledger, to)
    start = 0 if site_round is None or unusable else site_round
    missed = entries_between(ledger, start, to)
    gone = newest_dropped(missed)
    found = None if config.catch_up == "replay" and not gone else snapshots.latest(to)
    if gone and (found is None or found.round < gone):
        raise GapError(f"no snapshot of round {gone}, whose gradient was dropped, or a later one")
    if found is None or found.round <= start:
        return CatchUp(missed, reset=unusable)
    rest = entries_between(ledger, found.round, to)
    if not gone and config.catch_up == "auto" and _size(missed) <= found.size + _size(rest):
        return CatchUp(missed, reset=unusable)
    try:
        return CatchUp(rest, snapshots.read(found.round), reset=True)
    except SnapshotError as error:
        LOG.warning("not used: %s", error)
        snapshots.forget(found.round)
        return catch_up(config, ledger, snapshots, site_round, to)


def full_parameters(replica: Replica, run: bytes) -> CatchUp:
    """The whole state, as ``downlink = dense`` sends it every round."""
    return CatchUp([], encode_snapshot(replica, run), reset=True)


def _size(entries: list[bytes]) -> int:
    return sum(len(entry) + ENTRY_OVERHEAD for entry in entries)
