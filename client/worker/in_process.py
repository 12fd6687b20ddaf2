"""The work, done in this process: bytes of a message in, bytes of the answer out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from client.site.replica_host import ReplicaHost, host_of
from shared.protocol.messages import decode_request, encode_hello, encode_reply


@dataclass(frozen=True)
class InProcessWork:
    """Answers for one node with the host of this process."""

    run_config: Mapping[str, object]
    node_config: Mapping[str, object]

    def hello(self) -> bytes:
        """Who this site is, where its replica is, and what it can do."""
        return encode_hello(self._host().hello(self.node_config))

    def train(self, payload: bytes, snapshot: bytes | None) -> bytes:
        """Catch up and measure one round."""
        request = decode_request(payload)
        return encode_reply(self._host().train(self.node_config, request, snapshot))

    def prepare(
        self, payload: bytes, snapshot: bytes | None, others: Sequence[Mapping[str, object]]
    ) -> None:
        """Measure at once what this node and others of this process will be asked for."""
        nodes = [self.node_config, *others]
        self._host().prepare(nodes, decode_request(payload), snapshot)

    def _host(self) -> ReplicaHost:
        return host_of(self.run_config, self.node_config)
