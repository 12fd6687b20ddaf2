"""Paths of a node's worker: in a folder that no other user can enter."""

import fcntl
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO
from urllib.parse import quote

from client.site.node_config import NodeConfig
from shared.base.errors import ConfigError
from shared.base.files import state_folder
from shared.protocol.site_id import site_of

LONGEST_SOCKET_PATH = 100  # bytes; Linux takes 107
POLL_S = 0.05


@dataclass(frozen=True)
class WorkerPaths:
    """The files of one node's worker."""

    store: Path  # folder: the replica, and the worker's log
    socket: Path
    lock: Path  # locked by the worker as long as it lives

    @property
    def log(self) -> Path:
        """The worker's log."""
        return self.store / "worker.log"

    @property
    def address(self) -> str:
        """The socket as gRPC names it."""
        return f"unix:{self.socket}"


def paths_of(node_config: Mapping[str, object]) -> WorkerPaths:
    """Return the same paths in every process of a node.

    Raises:
        ConfigError: the folder for sockets is not private, or its path is too long.
    """
    node, name = NodeConfig.of(node_config), site_of(node_config).name
    store = Path(node.store) if node.store else state_folder() / f"site-{quote(name, safe='')}"
    folder = private_folder(_runtime_folder())
    short = sha256(f"{name}\0{store}".encode()).hexdigest()[:16]
    socket = folder / f"{short}.sock"
    check_length(socket)
    return WorkerPaths(store, socket, folder / f"{short}.lock")


def paths_at(socket: Path, store: Path) -> WorkerPaths:
    """The paths of a guard whose socket is where other users may reach it.

    Raises:
        ConfigError: the path is too long for a socket.
    """
    check_length(socket)
    return WorkerPaths(store, socket, store / "guard.lock")


def check_length(socket: Path) -> None:
    """Refuse a path that the system cannot bind.

    Raises:
        ConfigError: it is too long.
    """
    if len(os.fsencode(socket)) > LONGEST_SOCKET_PATH:
        raise ConfigError(f"{socket}: too long for a socket; set XDG_RUNTIME_DIR to a shorter path")


def private_folder(folder: Path) -> Path:
    """Make a folder that its owner alone can enter.

    Raises:
        ConfigError: it belongs to another user, or others can enter it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    private = stat.S_ISDIR(status.st_mode) and not stat.S_IMODE(status.st_mode) & 0o077
    if not private or status.st_uid != os.getuid():
        raise ConfigError(f"{folder}: a folder of user {os.getuid()} alone (mode 0700) expected")
    return folder


def take_lock(lock: Path, timeout_s: float = 0.0) -> IO[str] | None:
    """Lock a file until it is closed; None if another process has it locked."""
    file, deadline = lock.open("a"), time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= deadline:
                file.close()
                return None
            time.sleep(POLL_S)
        else:
            return file


def _runtime_folder() -> Path:
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given and Path(given).is_dir():
        return Path(given, "dandelion")
    return Path(os.environ.get("TMPDIR", "") or "/tmp", f"dandelion-{os.getuid()}")
