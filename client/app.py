"""The ClientApp: Flower in, Flower out; the work is elsewhere and torch is not imported here."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from shared.code import code_digest
from shared.errors import WireError
from shared.wire import Measured, decode_request, encode_hello, encode_reply, pack, unpack

app = ClientApp()


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Say who this site is, where its replica is, and what it can do."""
    from client.host import host_of

    hello = host_of(context.run_config, context.node_config).hello(context.node_config)
    return Message(content=pack(encode_hello(hello)), reply_to=message)


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
    from client.host import host_of

    reply = host_of(context.run_config, context.node_config).train(
        context.node_config, request, snapshot
    )
    dense = isinstance(reply, Measured) and bool(reply.gradient)
    return Message(content=pack(encode_reply(reply), dense=dense), reply_to=message)
