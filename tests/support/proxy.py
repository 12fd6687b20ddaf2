"""A TCP proxy that counts what passes each way, and can be cut and mended like a cable."""

import contextlib
import socket
import threading

CHUNK = 1 << 16


class CountingProxy:
    """Forwards one local port to another; ``up`` is from whoever connects."""

    def __init__(
        self, target: int, there: str = "127.0.0.1", here: str = "127.0.0.1", port: int = 0
    ) -> None:
        self._target, self._cut = (there, target), False
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.up = self.down = 0
        self._listener = socket.create_server((here, port))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def counted(self) -> tuple[int, int]:
        """Bytes up and down so far."""
        with self._lock:
            return self.up, self.down

    def cut(self) -> None:
        """End every connection and let none through."""
        with self._lock:
            self._cut = True
            ends = list(self._open)
        for end in ends:
            self._close(end)

    def mend(self) -> None:
        """Let connections through again."""
        with self._lock:
            self._cut = False

    def close(self) -> None:
        """Stop for good."""
        self.cut()
        self._close(self._listener)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._cut:
                    raise ConnectionRefusedError
                far = socket.create_connection(self._target, timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            for source, sink, way in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._pump, args=(source, sink, way), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                with self._lock:
                    setattr(self, way, getattr(self, way) + len(data))
                sink.sendall(data)
        for end in (source, sink):
            self._close(end)

    def _close(self, end: socket.socket) -> None:
        with self._lock:
            self._open.discard(end)
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
