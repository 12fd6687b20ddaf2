"""The resident worker: a process that keeps replica, data and device between ClientApps."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import grpc

from client.worker.paths import take_lock
from client.worker.protocol import (
    HELLO,
    OPTIONS,
    SERVICE,
    STATUS,
    STOP,
    TRAIN,
    decode_frame,
    encode_answer,
    encode_frame,
)
from shared.problem.source import source_digest

LOG = logging.getLogger("dandelion")
POLL_STOP_S = 0.2  # how often it checks whether it should stop
SAVE_S = 60.0  # for the last write of the replica; a stopping process must end
LONGEST_REASON = 2000  # characters of an error, which travels in a header


class Worker:
    """Answers calls one after another, all on one thread: threads and devices depend on it."""

    STOPPABLE = True  # whether whoever reaches the socket may end it

    def __init__(self, idle_s: float, app: str = "") -> None:
        self.stopping = threading.Event()
        self._idle_s, self._last, self._calls, self._busy = idle_s, time.monotonic(), 0, 0
        self._code = source_digest(app)  # of the files as they were when this process began
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="work")

    def handlers(self) -> grpc.GenericRpcHandler:
        """The calls, bytes in and bytes out."""
        calls = {STATUS: self.status, HELLO: self.hello, TRAIN: self.train}
        calls |= {STOP: self.stop} if self.STOPPABLE else {}
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {name: grpc.unary_unary_rpc_method_handler(call) for name, call in calls.items()},
        )

    def status(self, frame: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer who this process is, and what it has done."""
        header = {"pid": os.getpid(), "code": self._code.hex(), "calls": self._calls}
        return encode_frame(header | {"torch": "torch" in sys.modules})

    def stop(self, frame: bytes, context: grpc.ServicerContext) -> bytes:
        """Stop soon."""
        self.stopping.set()
        return b""

    def hello(self, frame: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer with an introduction."""
        return self._work(frame, context)

    def train(self, frame: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer a request with a reply."""
        return self._work(frame, context)

    def wait(self) -> None:
        """Return after a call to stop, or after ``idle_s`` seconds without a call."""
        while not self.stopping.wait(POLL_STOP_S):
            if not self._busy and time.monotonic() - self._last > self._idle_s:
                LOG.warning("nobody called for %g s", self._idle_s)
                return

    def save(self) -> None:
        """Write the replica, on the thread that changes it; give up if that is busy."""
        try:
            self._thread.submit(_save).result(timeout=SAVE_S if not self._busy else POLL_STOP_S)
        except TimeoutError:
            LOG.warning("busy: the store keeps an earlier replica")

    def answer(self, frame: bytes) -> bytes:
        """Do the work of one call; a frame without parts asks for an introduction."""
        header, parts = decode_frame(frame)
        return answer_with(header["run"], header["node"], parts)

    def limit_s(self, frame: bytes) -> float | None:
        """Seconds after which a call hangs; None: the one who calls decides, and ends us."""
        return None

    def give_up(self) -> None:
        """End the process: a call hangs, and only another process can answer the next."""
        LOG.error("a call hangs, this process ends")
        os._exit(1)

    def reason(self, error: Exception) -> str:
        """What the one who calls is told of an error."""
        return f"{type(error).__name__}: {error}"

    def _work(self, frame: bytes, context: grpc.ServicerContext) -> bytes:
        self._calls, self._busy = self._calls + 1, self._busy + 1
        try:
            future = self._thread.submit(self.answer, frame)
            if not wait([future], self.limit_s(frame)).done:
                self.give_up()
            return future.result()
        except Exception as error:  # the process boundary: the ClientApp reports it to Flower
            LOG.exception("a call failed")
            context.abort(grpc.StatusCode.ABORTED, self.reason(error)[:LONGEST_REASON])
        finally:
            self._busy, self._last = self._busy - 1, time.monotonic()
        raise AssertionError("unreachable")


def serve(
    socket: Path,
    lock: Path,
    worker: Worker,
    open_socket: Callable[[Path], None] = lambda socket: None,
) -> bool:
    """Answer on ``socket`` until the worker stops; return False at once if another one does.

    ``open_socket`` lets others than its owner reach it.
    """
    lock_file = take_lock(lock)
    if lock_file is None:
        return False
    lock_file.truncate(0)
    lock_file.write(str(os.getpid()))
    lock_file.flush()
    socket.unlink(missing_ok=True)  # of a worker that died: it has no lock
    os.umask(0o177)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: worker.stopping.set())
    server = grpc.server(ThreadPoolExecutor(8), options=OPTIONS)
    server.add_generic_rpc_handlers((worker.handlers(),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    os.umask(0o077)
    open_socket(socket)
    LOG.warning("%s %d is ready", type(worker).__name__.lower(), os.getpid())
    worker.wait()
    server.stop(None)
    worker.save()
    socket.unlink(missing_ok=True)
    lock_file.close()
    return True


def answer_with(
    run_config: Mapping[str, object], node_config: Mapping[str, object], parts: list[bytes]
) -> bytes:
    """Do the work of one node; without parts it introduces itself."""
    from client.site.in_process_work import InProcessWork

    work = InProcessWork(run_config, node_config)
    if not parts:
        return encode_answer(work.hello())
    return encode_answer(*work.train(parts[0], parts[1] if len(parts) > 1 else None))


def _save() -> None:
    if "client.site.replica_host" in sys.modules:
        from client.site.replica_host import save_all

        save_all()


def main() -> None:
    """``python -m client.worker.server SOCKET LOCK IDLE_SECONDS [APP]``."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    socket, lock, idle_s, *app = sys.argv[1:]
    serve(Path(socket), Path(lock), Worker(float(idle_s), *app))
    logging.shutdown()
    os._exit(0)  # a measurement that still runs must not keep the process


if __name__ == "__main__":
    main()
