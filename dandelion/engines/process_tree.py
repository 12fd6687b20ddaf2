"""Programs that end with the process that has started them, and so does all that they start.

Flower's SuperLink puts its SuperExec into a session of its own, and that starts the simulation,
which starts Ray. Each looks whether its parent is still there; one that is killed by SIGKILL, or a
parent that nobody reaps, leaves others behind. So this file is also a program, which runs between:

    dandelion ── pipe ──> process_tree.py ──> flower-superlink ──> flower-superexec ──> ...

It ends what is below it when the pipe closes, which the system does for a process that is killed.
On Linux it adopts what is below: a process whose parent is gone becomes its own child.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

DIE_WITH_PARENT, ADOPT_ORPHANS = 1, 36  # PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER of Linux
LOOK_S = 0.2
GRACE_S = 10.0  # from SIGTERM to SIGKILL
C_LIBRARY = ctypes.CDLL(None)


def start_tree(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], log: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """Start a program; when this process is gone, all that it has started is ended.

    Args:
        command: the program and its arguments.
        folder: its working folder.
        environment: its variables.
        log: what it says goes there.

    Returns:
        The process between: it has the exit status of the program, and ``end_tree`` ends it.
    """
    return subprocess.Popen(
        [sys.executable, "-I", __file__, *command],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def end_tree(process: "subprocess.Popen[bytes]") -> None:
    """End a program of ``start_tree`` and all that it has started, and wait until it is done."""
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(timeout=3 * GRACE_S)
    except subprocess.TimeoutExpired:
        end_session(process)


def end_session(process: "subprocess.Popen[bytes]") -> None:
    """End a process that leads its own session, and its children: by SIGTERM, then SIGKILL."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(timeout=GRACE_S)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait(timeout=GRACE_S)


def end_with_parent() -> None:
    """Have this process get SIGTERM when its parent is gone; only Linux can do that."""
    with suppress(AttributeError):
        C_LIBRARY.prctl(DIE_WITH_PARENT, signal.SIGTERM)


def parents() -> dict[int, int]:
    """Each process of this machine, and its parent."""
    files = list(Path("/proc").glob("[0-9]*/stat"))
    if not files:
        rows = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, check=True)
        return {int(pid): int(parent) for pid, parent in map(bytes.split, rows.stdout.splitlines())}
    pairs: dict[int, int] = {}
    for file in files:
        with suppress(OSError):  # it has just ended
            pairs[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
    return pairs


def below(pid: int) -> set[int]:
    """The processes that a process has started, and those that these have."""
    pairs, tree, size = parents(), {pid}, 0
    while size < len(tree):
        size = len(tree)
        tree |= {child for child, parent in pairs.items() if parent in tree}
    return tree - {pid}


def reap() -> dict[int, int]:
    """Take in the children that have ended; return their exit statuses by number."""
    ended: dict[int, int] = {}
    with suppress(ChildProcessError):  # none is left
        while (result := os.waitpid(-1, os.WNOHANG))[0]:
            ended[result[0]] = os.waitstatus_to_exitcode(result[1])
    return ended


def end_below() -> None:
    """End all that this process has started: by SIGTERM, then SIGKILL."""
    deadline, kind = time.monotonic() + GRACE_S, signal.SIGTERM
    signalled = set[int]()
    while left := below(os.getpid()):
        for pid in left - signalled:
            with suppress(ProcessLookupError):
                os.kill(pid, kind)
        signalled |= left
        if kind == signal.SIGTERM and time.monotonic() > deadline:
            kind, signalled = signal.SIGKILL, set()
        time.sleep(LOOK_S / 10)
        reap()


def run(command: Sequence[str]) -> int:
    """Run a program; end all below when it ends, or standard input closes; return its status."""
    with suppress(AttributeError):
        C_LIBRARY.prctl(ADOPT_ORPHANS, 1)
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stops.append(number))
    source, program = sys.stdin.fileno(), subprocess.Popen(command, stdin=subprocess.DEVNULL)
    status: int | None = None
    while status is None and not stops and not select.select([source], [], [], LOOK_S)[0]:
        status = reap().get(program.pid)
    end_below()
    return 1 if status is None else status


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
