"""The guard: a process of the site's own installation, the only one that reads the site's data.

It decodes requests, checks them against the node's policy, measures and answers. What a server
sends as code of a run only relays bytes to its socket, and neither its settings nor its code decide
what is read here: the node's config comes from the site's operator alone.
"""

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import grpc

from client.site.node_config import NodeConfig
from client.worker.paths import WorkerPaths
from client.worker.protocol import decode_frame
from client.worker.server import POLL_STOP_S, Worker, answer_with, serve
from shared.base.errors import DandelionError, WorkerError

LOG = logging.getLogger("dandelion")
LEAST_LIMIT_S, HELLO_LIMIT_S = 60.0, 900.0  # of a call; the first call builds model and data
GROUP_MODE = 0o660


class Guard(Worker):
    """Answers the calls of ClientApps for one node, whose config no call can change."""

    STOPPABLE = False

    def __init__(self, node_config: Mapping[str, object], idle_s: float) -> None:
        super().__init__(idle_s)
        self._node, self._raster_s = dict(node_config), NodeConfig.of(node_config).answer_raster
        self.rests = False  # whether it should begin anew, without model and data in memory

    def hello(self, frame: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer with an introduction, on the raster."""
        with self._on_raster():
            return super().hello(frame, context)

    def train(self, frame: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer a request with a reply or a refusal, on the raster."""
        with self._on_raster():
            return super().train(frame, context)

    @contextmanager
    def _on_raster(self) -> Iterator[None]:
        """Let a call, or its error, end a multiple of ``answer-raster`` after its beginning.

        How long an exact draw of noise takes depends on its value (Jin et al. 2021,
        https://arxiv.org/abs/2112.05307), and whether a batch is large or empty shows too.
        """
        began = time.monotonic()
        try:
            yield
        finally:
            if self._raster_s:
                time.sleep((began - time.monotonic()) % self._raster_s)

    def answer(self, frame: bytes) -> bytes:
        """Do the work of one call on this node's own config; nothing that the call says of it."""
        header, parts = decode_frame(frame)
        return answer_with(header["run"], self._node, parts)

    def limit_s(self, frame: bytes) -> float | None:
        """Seconds after which a call hangs: those of a round, or of an introduction."""
        header, parts = decode_frame(frame)
        if not parts:
            return HELLO_LIMIT_S
        return max(LEAST_LIMIT_S, float(str(header["run"].get("round-timeout", HELLO_LIMIT_S))))

    def reason(self, error: Exception) -> str:
        """What the server is told of an error: of one that we did not write, its kind alone.

        Its text may have names of files, or of what is in them.
        """
        own = isinstance(error, DandelionError)
        return super().reason(error) if own else f"{type(error).__name__}"

    def wait(self) -> None:
        """Return when it is told to stop, or should begin anew after ``idle_s`` without a call."""
        while not self.stopping.wait(POLL_STOP_S):
            idle_for = time.monotonic() - self._last
            if self._calls and not self._busy and idle_for > self._idle_s:
                LOG.warning("nobody called for %g s: model and data leave the memory", idle_for)
                self.rests = True
                return


def run_guard(
    node_config: Mapping[str, object], paths: WorkerPaths, idle_s: float, group: str = ""
) -> NoReturn:
    """Be a node's guard until a signal ends this process; after a rest it begins anew.

    Args:
        node_config: of the node.
        paths: of socket, lock and store.
        idle_s: time without a message after which model and data are dropped.
        group: whose members may reach the socket too; empty: its owner alone.

    Raises:
        WorkerError: another process does the work of this node.
    """
    paths.store.mkdir(mode=0o700, parents=True, exist_ok=True)
    guard = Guard(node_config, idle_s)

    def open_to_group(socket: Path) -> None:
        if group:
            shutil.chown(socket, group=group)
            socket.chmod(GROUP_MODE)

    if not serve(paths.socket, paths.lock, guard, open_to_group):
        raise WorkerError(f"process {paths.lock.read_text()!r} does the work of this node: end it")
    logging.shutdown()
    if guard.rests:
        os.execv(sys.executable, sys.orig_argv)
    os._exit(0)  # a measurement that still runs must not keep the process
