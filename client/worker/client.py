"""Calls a node's resident worker over its socket; starts it, or replaces it, if need be."""

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
    decode_answer,
    decode_frame,
    encode_frame,
    path,
)
from shared.base.errors import WorkerError
from shared.problem.source import app_folder, source_digest, use_folder

LOG = logging.getLogger("dandelion")
ROOT = Path(__file__).resolve().parents[2]
ANSWER_S, START_S, END_S = 5.0, 60.0, 15.0
ATTEMPTS = 2  # a worker that dies during a call is started once more
HELLO_S = 900.0  # the first call builds model and data
LOG_END = 1500  # characters of a log that an error quotes


class WorkerClient:
    """Has the work of one node done by its resident worker; does not import torch."""

    def __init__(self, run_config: Mapping[str, object], node_config: Mapping[str, object]) -> None:
        node, self._paths = NodeConfig.of(node_config), paths_of(node_config)
        defaults = {"store": str(self._paths.store), "store-every": node.store_every}
        self._header = {"run": dict(run_config), "node": {**node_config, **defaults}}
        self._app = str(run_config.get("app", ""))
        use_folder(node.app_dir)
        self._idle_s = node.worker_idle
        self._round_s = float(str(run_config.get("round-timeout", HELLO_S)))

    def hello(self) -> bytes:
        """Return the node's introduction, encoded.

        Raises:
            WorkerError: the worker's error, that it died twice, or that it hangs.
        """
        return self._work(HELLO, [], HELLO_S)[0]

    def train(self, payload: bytes, snapshot: bytes | None) -> tuple[bytes, bool]:
        """Catch up and measure one round; return the reply, and whether a gradient is in it.

        Raises:
            WorkerError: the worker's error, that it died twice, or that it hangs.
        """
        parts = [payload] if snapshot is None else [payload, snapshot]
        return self._work(TRAIN, parts, self._round_s)

    def _work(self, call: str, parts: list[bytes], timeout_s: float) -> tuple[bytes, bool]:
        frame = encode_frame(self._header, parts)
        for _ in range(ATTEMPTS):
            ensure_worker(self._paths, self._idle_s, self._app)
            try:
                return decode_answer(send_call(self._paths.address, call, frame, timeout_s))
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                    end(self._paths, patience_s=0.0)
                    raise WorkerError(
                        f"the worker was ended: {call} took {timeout_s:g} s; "
                        f"the site's own log: {self._paths.log}"
                    ) from error
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    detail = f"{error.details()}; the site's own log: {self._paths.log}"
                    raise WorkerError(detail) from error
                LOG.warning("the worker died at %s", call)
        raise WorkerError(
            f"the worker died {ATTEMPTS} times at {call}: {_read_log(self._paths)}; "
            f"the site's own log: {self._paths.log}"
        )


def send_call(address: str, call: str, frame: bytes, timeout_s: float) -> bytes:
    """Make one call to a socket, as gRPC names it, and return its answer.

    Raises:
        grpc.RpcError: it fails.
    """
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        answer: bytes = channel.unary_unary(path(call))(frame, timeout=timeout_s)
    return answer


def status(paths: WorkerPaths) -> dict[str, Any] | None:
    """The worker's status; None if there is none that answers."""
    try:
        return decode_frame(send_call(paths.address, STATUS, encode_frame({}), ANSWER_S))[0]
    except grpc.RpcError:
        return None


def ensure_worker(paths: WorkerPaths, idle_s: float, app: str = "") -> dict[str, Any]:
    """Return the status of a worker with this process's source files; start it if need be.

    Those of the run's own problem, ``app``, belong to them.

    Raises:
        WorkerError: it does not start, or another does not stop.
    """
    running = _await_status(paths)
    if running is not None and running["code"] == source_digest(app).hex():
        return running
    if running is not None:
        LOG.info("the worker has other source files and is replaced")
    end(paths)
    return _start(paths, idle_s, app)


def _await_status(paths: WorkerPaths) -> dict[str, Any] | None:
    """Return the worker's status, once it answers; None if there is no worker, or it hangs."""
    deadline = time.monotonic() + END_S
    while (answer := status(paths)) is None and time.monotonic() < deadline:
        if (lock := take_lock(paths.lock)) is not None:
            lock.close()
            return None
        time.sleep(POLL_S)
    return answer


def end(paths: WorkerPaths, patience_s: float = END_S) -> None:
    """Tell the worker to stop, and kill it after ``patience_s``; return when it is gone.

    Its socket is removed too.

    Raises:
        WorkerError: it is still there.
    """
    if patience_s and (lock := take_lock(paths.lock)):
        _clear(paths, lock)
        return
    try:
        send_call(paths.address, STOP, encode_frame({}), ANSWER_S)
    except grpc.RpcError:
        LOG.info("the worker does not answer")
    if not (lock := take_lock(paths.lock, patience_s)):
        _kill(paths)
        lock = take_lock(paths.lock, END_S)
    if lock is None:
        raise WorkerError(f"the worker {paths.lock.read_text()!r} does not stop")
    _clear(paths, lock)


def _clear(paths: WorkerPaths, lock: IO[str]) -> None:
    """Remove the socket of a killed worker; the lock is ours, so no other worker has begun."""
    paths.socket.unlink(missing_ok=True)
    lock.close()


def _kill(paths: WorkerPaths) -> None:
    """Kill the process that has the lock and wrote its number there."""
    text = paths.lock.read_text().strip()
    try:
        os.kill(int(text), signal.SIGKILL)
    except (ValueError, ProcessLookupError):
        LOG.info("the worker %r is gone already", text)


def _start(paths: WorkerPaths, idle_s: float, app: str) -> dict[str, Any]:
    pid, deadline = _spawn(paths, idle_s, app), time.monotonic() + START_S
    while time.monotonic() < deadline:
        if (answer := status(paths)) is not None:
            return answer
        ended, code = os.waitpid(pid, os.WNOHANG) if pid else (0, 0)
        if code:
            break
        pid = 0 if ended else pid  # ended without error: another worker was there first
        time.sleep(POLL_S)
    raise WorkerError(f"the worker did not start: {_read_log(paths)}")


def _spawn(paths: WorkerPaths, idle_s: float, app: str) -> int:
    """Start a worker in a session of its own, which imports this process's source files."""
    paths.store.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-P",
        "-m",
        "client.worker.server",
        str(paths.socket),
        str(paths.lock),
    ]
    log = os.open(paths.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return os.posix_spawn(
            sys.executable,
            [*command, str(idle_s), app],
            {**os.environ, "PYTHONPATH": _search_path(app)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(log)


def _search_path(app: str) -> str:
    """Our source files' folder, and that of the module of the run's own problem."""
    return os.pathsep.join(map(str, [ROOT, *([app_folder(app)] if app else [])]))


def _read_log(paths: WorkerPaths) -> str:
    try:
        return paths.log.read_text(errors="replace")[-LOG_END:]
    except OSError as error:
        return str(error)
