"""The ClientApp: Flower in, Flower out; the work is elsewhere and torch is not imported here."""

from typing import Protocol

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.node import Node
from shared.code import code_digest
from shared.envelope import pack, unpack
from shared.errors import WireError
from shared.wire import Measured, decode_reply, decode_request

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
    if Node.of(context.node_config).resident:
        from client.resident import Resident

        return Resident(context.run_config, context.node_config)
    from client.inline import Inline

    return Inline(context.run_config, context.node_config)
