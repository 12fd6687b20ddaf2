"""The ClientApp: Flower in, Flower out; the work is elsewhere and torch is not imported here."""

from typing import Protocol

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.site.node_config import NodeConfig
from shared.base.errors import WireError
from shared.base.files import code_digest
from shared.protocol.flower_records import pack, unpack
from shared.protocol.messages import Measured, decode_reply, decode_request

app = ClientApp()


class Work(Protocol):
    """Who does the work: this process, or a resident worker."""

    def hello(self) -> bytes:
        """An encoded introduction."""

    def train(self, payload: bytes, snapshot: bytes | None) -> bytes:
        """The encoded reply to an encoded request."""


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Say who this site is, where its replica is, and what it can do."""
    return Message(content=pack(work_of(context).hello()), reply_to=message)


@app.train()
def measure(message: Message, context: Context) -> Message:
    """Catch up and measure one round; an error becomes Flower's error reply, with its reason."""
    payload, snapshot = unpack(message.content)
    request = decode_request(payload)
    if request.code != code_digest():
        raise WireError(
            f"this site has other source files than the server: "
            f"{request.code.hex()} expected, got {code_digest().hex()}"
        )
    data = work_of(context).train(payload, snapshot)
    reply = decode_reply(data)
    dense = isinstance(reply, Measured) and bool(reply.gradient)
    return Message(content=pack(data, dense=dense), reply_to=message)


def work_of(context: Context) -> Work:
    """Who answers for this node, as its config says."""
    if NodeConfig.of(context.node_config).resident:
        from client.worker.client import WorkerClient

        return WorkerClient(context.run_config, context.node_config)
    from client.worker.in_process import InProcessWork

    return InProcessWork(context.run_config, context.node_config)
