"""The ClientApp hands Flower's messages to whoever does the work; it does not import torch."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.site.node_config import NodeConfig
from client.worker.protocol import Work
from shared.base.errors import WireError
from shared.problem.source import source_digest
from shared.protocol.flower_records import pack, unpack
from shared.protocol.messages import decode_request
from shared.protocol.sealed_messages import decode_sum_request, is_sum_request

app = ClientApp()


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Reply who this site is, where its replica is, and what it can do."""
    return Message(content=pack(work_of(context).hello()), reply_to=message)


@app.train()
def measure(message: Message, context: Context) -> Message:
    """Catch up and measure one round; an error becomes Flower's error reply, with its reason."""
    payload, snapshot = unpack(message.content)
    request = decode_sum_request(payload) if is_sum_request(payload) else decode_request(payload)
    app, folder = context.run_config.get("app", ""), context.node_config.get("app-dir", "")
    code = source_digest(str(app), str(folder))
    if request.code != code:
        where = f", or of app {app!r}" if app else ""
        raise WireError(
            f"this site has other source files than the server{where}: "
            f"{request.code.hex()} expected, got {code.hex()}"
        )
    reply, dense = work_of(context).train(payload, snapshot)
    return Message(content=pack(reply, dense=dense), reply_to=message)


def work_of(context: Context) -> Work:
    """Return what does the work of this node: a resident worker, or this process."""
    if NodeConfig.of(context.node_config).resident:
        from client.worker.client import WorkerClient

        return WorkerClient(context.run_config, context.node_config)
    from client.site.replica_host import InProcessWork

    return InProcessWork(context.run_config, context.node_config)
