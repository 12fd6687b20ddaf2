"""Waits for and watches processes: what they have loaded, what those that stay gain."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

LOOK_S, SETTLED_S, PATIENCE_S = 0.01, 30.0, 600.0
HEAVY = ("libtorch", "llvmlite", "safetensors", "/numba/", "/tokenizers/")  # files, when mapped


def until(
    holds: Callable[[], object], what: str, timeout_s: float = PATIENCE_S, each_s: float = 0.2
) -> None:
    """Wait for something, or say what did not happen; look every ``each_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(each_s)


def mapped(pid: int) -> set[str]:
    """Which of the heavy libraries a process has in its memory."""
    text = ""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/maps").read_text()
    return {name for name in HEAVY if name in text}


def of(folder: Path, word: str = "") -> list[int]:
    """Processes that were started for a folder and have a word in their command line."""
    pids, name = [], os.fsencode(folder)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if word.encode() in command:
                    text = command + b"\0" + (entry / "environ").read_bytes()
                    pids += [int(entry.name)] * (name + b"/" in text)
    return pids


class Watch(threading.Thread):
    """Looks at such processes as long as the block lasts."""

    def __init__(self, folder: Path, word: str) -> None:
        super().__init__(daemon=True)
        self._folder, self._word, self._over = folder, word, threading.Event()
        self.seen: dict[int, set[str]] = {}  # by process: the heavy libraries that it loaded

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(LOOK_S):
            for pid in of(self._folder, self._word):
                self.seen[pid] = self.seen.get(pid, set()) | mapped(pid)


@dataclass
class Progress:
    """Says that something hangs: a number that is to grow has stayed as it was for too long."""

    most: int = -1
    since: float = 0.0

    def look(self, number: int, what: str, patience_s: float = PATIENCE_S) -> None:
        """Note what the number is now."""
        if number > self.most:
            self.most, self.since = number, time.monotonic()
        waited = time.monotonic() - self.since
        assert waited < patience_s, f"{self.most} {what}: none more within {patience_s:g} s"


@dataclass
class Resources:
    """What long-lived processes gain, after their first half minute, in memory and open files."""

    started: dict[int, float] = field(default_factory=dict)  # when it was first seen
    first: dict[int, tuple[int, int]] = field(default_factory=dict)  # bytes, files, once settled
    gained: dict[int, tuple[str, int, int]] = field(default_factory=dict)  # its kind, since then

    def look(self, kind: str, pids: list[int]) -> None:
        """Note what these processes of one kind use now."""
        now = time.monotonic()
        for pid in pids:
            with contextlib.suppress(OSError, IndexError):
                used = _memory(pid), _files(pid)
                if now - self.started.setdefault(pid, now) < SETTLED_S:
                    continue
                first = self.first.setdefault(pid, used)
                self.gained[pid] = (kind, used[0] - first[0], used[1] - first[1])

    def most(self) -> dict[str, tuple[int, int]]:
        """The largest gains in bytes and in files of any process of a kind."""
        gains: dict[str, tuple[int, int]] = {}
        for kind, size, files in self.gained.values():
            before = gains.get(kind, (0, 0))
            gains[kind] = max(size, before[0]), max(files, before[1])
        return gains


def _files(pid: int) -> int:
    """Open files and sockets of a process, but for its databases: pools hold connections to these.

    The SuperLink's pool is SQLAlchemy's own: up to 15, as many as there were requests at a time.
    """
    folder = f"/proc/{pid}/fd"
    names = [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]
    return sum(not name.endswith((".db", ".db-wal", ".db-shm", ".db-journal")) for name in names)


def _memory(pid: int) -> int:
    """Bytes of a process that are in memory and of no file, shared with forked ones or not."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(line.split()[1]) for line in text.splitlines() if "Anonymous:" in line)


def of_flower_home(home: Path) -> list[int]:
    """What Flower's command left running for this home: its daemon never stops by itself."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"FLWR_HOME={home}".encode() in environ:
                pids.append(int(entry.name))
    return pids
