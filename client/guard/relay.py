"""Hands the bytes of a run's messages to the node's guard; has no data, and imports no torch.

This is all that code which a server sends does at a site that has a guard.
"""

import time
from collections.abc import Mapping

import grpc

from client.worker.client import HELLO_S, START_S, send_call
from client.worker.paths import POLL_S
from client.worker.protocol import HELLO, TRAIN, decode_answer, encode_frame
from shared.base.errors import PolicyError, WorkerError

REFUSAL = f"{PolicyError.__name__}: {PolicyError.PREFIX}"


class GuardRelay:
    """Has the work of one node done by its guard; knows the path of its socket and nothing else."""

    def __init__(self, run_config: Mapping[str, object], socket: str) -> None:
        self._run, self._address = dict(run_config), f"unix:{socket}"
        self._round_s = float(str(run_config.get("round-timeout", HELLO_S)))

    def hello(self) -> bytes:
        """Return the node's introduction, encoded.

        Raises:
            PolicyError: the site's operator does not allow the run.
            WorkerError: the guard's error, that it does not answer, or that it hangs.
        """
        return self._work(HELLO, [], HELLO_S)[0]

    def train(self, payload: bytes, snapshot: bytes | None) -> tuple[bytes, bool]:
        """Return the reply to an encoded request, encoded, and whether a gradient is in it.

        Raises:
            PolicyError: the site's operator does not allow the request.
            WorkerError: the guard's error, that it does not answer, or that it hangs.
        """
        parts = [payload] if snapshot is None else [payload, snapshot]
        return self._work(TRAIN, parts, self._round_s)

    def _work(self, call: str, parts: list[bytes], timeout_s: float) -> tuple[bytes, bool]:
        """Make a call; while the guard is being started again, wait for it."""
        frame, deadline = encode_frame({"run": self._run}, parts), time.monotonic() + START_S
        while True:
            try:
                return decode_answer(send_call(self._address, call, frame, timeout_s))
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise self._explain(call, error) from error
            time.sleep(POLL_S)

    @staticmethod
    def _explain(call: str, error: grpc.RpcError) -> PolicyError | WorkerError:
        details = str(error.details())
        if details.startswith(REFUSAL):
            return PolicyError(details.removeprefix(REFUSAL))
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            details = f"the guard has not answered {call} for {START_S:g} s"
        elif error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            details = f"the guard took too long for {call}"
        return WorkerError(f"{details}; the site's own log says more")
