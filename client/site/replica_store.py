"""A site's replica on its own disk, so that a restarted process continues from its round."""

import logging
import time
from pathlib import Path

from shared.base.errors import SnapshotError
from shared.base.files import write_atomically
from shared.replica.replica import Replica
from shared.replica.snapshot import encode_snapshot, load_snapshot_, snapshot_position

LOG = logging.getLogger("dandelion")


class ReplicaStore:
    """One file, replaced atomically; a damaged file or one of another run is ignored."""

    def __init__(self, folder: Path, every_s: float = 0.0) -> None:
        self.path = folder / "replica.safetensors"
        self.round = 0  # of the stored replica, if it is of the run that this process follows
        self._every_s, self._next = every_s, 0.0

    def is_due(self, round_: int) -> bool:
        """Whether a replica at this round should be written now; rounds may be skipped.

        Never the base model, which is made and not read.
        """
        return round_ not in (0, self.round) and time.monotonic() >= self._next

    def save(self, replica: Replica, run: bytes) -> None:
        """Write the replica as it is now."""
        write_atomically(self.path, encode_snapshot(replica, run))
        self.round, self._next = replica.round, time.monotonic() + self._every_s

    def read_position(self) -> tuple[int, bytes]:
        """Read the stored replica's round and run; (0, b"") if it cannot be used.

        They are in the site's introduction, so that it is sent no more than it lacks.
        """
        try:
            return snapshot_position(self.path) if self.path.exists() else (0, b"")
        except SnapshotError as error:
            LOG.warning("store not used, the server will send what is missing: %s", error)
            return 0, b""

    def load_(self, replica: Replica, run: bytes) -> bool:
        """Bring a fresh replica to the stored round; return False if the store cannot be used.

        The server then sends all entries, which costs bytes and nothing else.
        """
        if not self.path.exists():
            return False
        try:
            load_snapshot_(replica, self.path.read_bytes(), run, str(self.path))
        except (OSError, SnapshotError) as error:
            LOG.warning("store not used, the server will send what is missing: %s", error)
            return False
        self.round = replica.round
        return True
