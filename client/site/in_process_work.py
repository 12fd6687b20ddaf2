"""The work of one node in this process: bytes in, bytes out, and who may ask for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from client.privacy.operators import check_operator
from client.site.replica_host import ReplicaHost, host_of
from client.site.run_settings import node_of, read_settings
from shared.base.errors import WireError
from shared.base.plug_ins import list_plug_ins
from shared.config.schema import Config
from shared.problem.source import source_digest
from shared.protocol.messages import Measured, decode_request, encode_hello, encode_reply
from shared.protocol.sealed_messages import SumRequest, decode_sum_request, is_sum_request


@dataclass(frozen=True)
class InProcessWork:
    """Does the work of one node with the host of this process; bytes in, bytes out."""

    run_config: Mapping[str, object]
    node_config: Mapping[str, object]

    def hello(self) -> bytes:
        """Return the node's introduction, encoded.

        Raises:
            PolicyError: the node's operator does not allow the run.
        """
        self._check_operator()
        return encode_hello(self._host().hello(self.node_config))

    def train(self, payload: bytes, snapshot: bytes | None) -> tuple[bytes, bool]:
        """Return the reply to an encoded request, encoded, and whether a gradient is in it.

        Raises:
            PolicyError: the node's operator does not allow the request.
            WireError: the server has other source files.
        """
        is_sum = is_sum_request(payload)
        request = decode_sum_request(payload) if is_sum else decode_request(payload)
        self._check_operator(request.run)
        self._check_code(request.code)
        if isinstance(request, SumRequest):
            return self._host().add_up(self.node_config, request), False
        reply = self._host().train(self.node_config, request, snapshot)
        return encode_reply(reply), isinstance(reply, Measured) and bool(reply.gradient)

    def prepare(
        self, payload: bytes, snapshot: bytes | None, others: Sequence[Mapping[str, object]]
    ) -> None:
        """Measure together what this node and ``others`` of this process will be requested."""
        nodes = [self.node_config, *others]
        self._host().prepare(nodes, decode_request(payload), snapshot)

    def _check_operator(self, run: bytes = b"") -> None:
        node = node_of(self.node_config)
        read_settings(self.run_config, self.node_config)  # the policy, before names are looked up
        if node.operators:
            check_operator(node, Config.from_run_config(self.run_config), self._code(), run)

    def _check_code(self, expected: bytes) -> None:
        """Refuse a server with other source files; Flower's simulation can mix up two apps'."""
        if expected != (code := self._code()):
            app = self.run_config.get("app", "")
            where = f", or of app {app!r}" if app else ""
            here = ", ".join(list_plug_ins()) or "none"
            raise WireError(
                f"this site has other source files than the server{where}: {expected.hex()} "
                f"expected, got {code.hex()}; they include plug-ins (here: {here})"
            )

    def _code(self) -> bytes:
        app, folder = self.run_config.get("app", ""), self.node_config.get("app-dir", "")
        return source_digest(str(app), str(folder))

    def _host(self) -> ReplicaHost:
        return host_of(self.run_config, self.node_config)
