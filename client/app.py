"""The ClientApp hands Flower's messages to whoever does the work; it does not import torch."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.site.node_config import NodeConfig
from client.worker.protocol import Work
from shared.base.errors import DandelionError, WireError
from shared.protocol.flower_records import pack, rider_of, unpack
from shared.protocol.sealed_messages import encode_sum_refusal, is_sum_request

app = ClientApp()


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Reply who this site is, where its replica is, and what it can do."""
    return Message(content=pack(work_of(context).hello()), reply_to=message)


@app.train()
def measure(message: Message, context: Context) -> Message:
    """Catch up and measure one round; an error becomes Flower's error reply, with its reason.

    A request for a sealed sum of the round before may ride with it, and its answer with the reply.
    """
    work, (payload, snapshot) = work_of(context), unpack(message.content)
    sums = add_up(work, rider) if (rider := rider_of(message.content)) else b""
    reply, dense = work.train(payload, snapshot)
    return Message(content=pack(reply, dense=dense, rider=sums), reply_to=message)


def add_up(work: Work, rider: bytes) -> bytes:
    """Return a member's sums, encoded, or why there are none: that does not spoil its round."""
    try:
        if not is_sum_request(rider):
            raise WireError("a request for a sum expected beside that for a round")
        return work.train(rider, None)[0]
    except DandelionError as error:
        return encode_sum_refusal(f"{type(error).__name__}: {error}")


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
