"""A ClientApp's way to its node's resident worker: found, or started, and asked over its socket."""

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import grpc

from client.site.node_config import NodeConfig
from client.worker.paths import POLL_S, WorkerPaths, paths_of, take_lock
from client.worker.protocol import (
    HELLO,
    OPTIONS,
    STATUS,
    STOP,
    TRAIN,
    decode_frame,
    encode_frame,
    path,
)
from shared.base.errors import WorkerError
from shared.base.files import code_digest

LOG = logging.getLogger("dandelion")
ROOT = Path(__file__).resolve().parents[2]
ANSWER_S, START_S, END_S = 5.0, 60.0, 15.0
ATTEMPTS = 2  # a worker that dies at its work is started once more
HELLO_S = 900.0  # the first call builds model and data
TAIL = 1500  # characters of a log that an error quotes


class WorkerClient:
    """Answers for one node by the worker that stays; imports no torch."""

    def __init__(self, run_config: Mapping[str, object], node_config: Mapping[str, object]) -> None:
        node, self._place = NodeConfig.of(node_config), paths_of(node_config)
        defaults = {"store": str(self._place.store), "store-every": node.store_every}
        self._head = {"run": dict(run_config), "node": {**node_config, **defaults}}
        self._idle_s = node.worker_idle
        self._round_s = float(str(run_config.get("round-timeout", HELLO_S)))

    def hello(self) -> bytes:
        """Who this site is, where its replica is, and what it can do."""
        return self._work(HELLO, [], HELLO_S)

    def train(self, payload: bytes, snapshot: bytes | None) -> bytes:
        """Catch up and measure one round.

        Raises:
            WorkerError: what the worker says, that it died twice, or that it hangs.
        """
        parts = [payload] if snapshot is None else [payload, snapshot]
        return self._work(TRAIN, parts, self._round_s)

    def _work(self, call: str, parts: list[bytes], timeout_s: float) -> bytes:
        frame = encode_frame(self._head, parts)
        for _ in range(ATTEMPTS):
            ensure_worker(self._place, self._idle_s)
            try:
                return ask(self._place, call, frame, timeout_s)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                    end(self._place, patience_s=0.0)
                    raise WorkerError(
                        f"the worker was ended: {call} took {timeout_s:g} s"
                    ) from error
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise WorkerError(str(error.details())) from error
                LOG.warning("the worker died at %s", call)
        raise WorkerError(f"the worker died {ATTEMPTS} times at {call}: {_tail(self._place)}")


def ask(place: WorkerPaths, call: str, frame: bytes, timeout_s: float) -> bytes:
    """One call; ``grpc.RpcError`` where it fails."""
    with grpc.insecure_channel(place.address, options=OPTIONS) as channel:
        answer: bytes = channel.unary_unary(path(call))(frame, timeout=timeout_s)
    return answer


def status(place: WorkerPaths) -> dict[str, Any] | None:
    """What the worker says of itself; None where there is none that answers."""
    try:
        return decode_frame(ask(place, STATUS, encode_frame({}), ANSWER_S))[0]
    except grpc.RpcError:
        return None


def ensure_worker(place: WorkerPaths, idle_s: float) -> dict[str, Any]:
    """Return when a worker with this process's source files answers; start it where needed.

    Raises:
        WorkerError: it does not start, or another does not stop.
    """
    found = _look(place)
    if found is not None and found["code"] == code_digest().hex():
        return found
    if found is not None:
        LOG.info("the worker has other source files and is replaced")
    end(place)
    return _start(place, idle_s)


def _look(place: WorkerPaths) -> dict[str, Any] | None:
    """The worker's status, once it has one; None where there is no worker, or it hangs."""
    deadline = time.monotonic() + END_S
    while (found := status(place)) is None and time.monotonic() < deadline:
        if (lock := take_lock(place.lock)) is not None:
            lock.close()
            return None
        time.sleep(POLL_S)
    return found


def end(place: WorkerPaths, patience_s: float = END_S) -> None:
    """Have the worker stop, kindly at first; return when it is gone, and its socket with it.

    Raises:
        WorkerError: it is still there.
    """
    if patience_s and (lock := take_lock(place.lock)):
        _clear(place, lock)
        return
    try:
        ask(place, STOP, encode_frame({}), ANSWER_S)
    except grpc.RpcError:
        LOG.info("the worker does not answer")
    if not (lock := take_lock(place.lock, patience_s)):
        _kill(place)
        lock = take_lock(place.lock, END_S)
    if lock is None:
        raise WorkerError(f"the worker {place.lock.read_text()!r} does not stop")
    _clear(place, lock)


def _clear(place: WorkerPaths, lock: IO[str]) -> None:
    """Remove what a killed worker leaves; with the lock in hand, so that no other one has begun."""
    place.socket.unlink(missing_ok=True)
    lock.close()


def _kill(place: WorkerPaths) -> None:
    """End the process that holds the lock and wrote its number there."""
    text = place.lock.read_text().strip()
    try:
        os.kill(int(text), signal.SIGKILL)
    except (ValueError, ProcessLookupError):
        LOG.info("the worker %r is gone already", text)


def _start(place: WorkerPaths, idle_s: float) -> dict[str, Any]:
    pid, deadline = _spawn(place, idle_s), time.monotonic() + START_S
    while time.monotonic() < deadline:
        if (found := status(place)) is not None:
            return found
        ended, code = os.waitpid(pid, os.WNOHANG) if pid else (0, 0)
        if code:
            break
        pid = 0 if ended else pid  # well ended: another worker was there first
        time.sleep(POLL_S)
    raise WorkerError(f"the worker did not start: {_tail(place)}")


def _spawn(place: WorkerPaths, idle_s: float) -> int:
    """Start a process in a session of its own that finds these files and no others first."""
    place.store.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-P",
        "-m",
        "client.worker.server",
        str(place.socket),
        str(place.lock),
    ]
    log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return os.posix_spawn(
            sys.executable,
            [*command, str(idle_s)],
            {**os.environ, "PYTHONPATH": str(ROOT)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(log)


def _tail(place: WorkerPaths) -> str:
    try:
        return place.log.read_text(errors="replace")[-TAIL:]
    except OSError as error:
        return str(error)
