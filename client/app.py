"""The ClientApp hands Flower's messages to whoever does the work; it does not import torch."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.site.node_config import NodeConfig
from client.worker.protocol import Work
from shared.protocol.flower_records import pack, unpack

app = ClientApp()


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Reply who this site is, where its replica is, and what it can do."""
    return Message(content=pack(work_of(context).hello()), reply_to=message)


@app.train()
def measure(message: Message, context: Context) -> Message:
    """Catch up and measure one round; an error becomes Flower's error reply, with its reason."""
    reply, dense = work_of(context).train(*unpack(message.content))
    return Message(content=pack(reply, dense=dense), reply_to=message)


def work_of(context: Context) -> Work:
    """Return what does the work of this node: its guard, a resident worker, or this process."""
    if guard := context.node_config.get("guard"):
        from client.guard.relay import GuardRelay

        return GuardRelay(context.run_config, str(guard))
    if NodeConfig.of(context.node_config).resident:
        from client.worker.client import WorkerClient

        return WorkerClient(context.run_config, context.node_config)
    from client.site.in_process_work import InProcessWork

    return InProcessWork(context.run_config, context.node_config)
