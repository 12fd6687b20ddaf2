"""Any loss as a ClientApp's train handler, and arrays for its evaluate handler.

The ServerApp has the strategy ``dandelion.ZerothOrder``. No gradient is computed and no parameter
is sent: a client keeps a replica that follows the server's entries, and sends q numbers a round.
"""

from collections.abc import Callable, Mapping
from hashlib import sha256
from math import nan
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord

from client.handlers.client_replica import ReadyReplica, bring
from client.handlers.measurement import Batches, Loss, measure
from shared.apps.flat_module import BuildModule
from shared.apps.records import OURS, AppReply, describe_reply, pack_reply, unpack_request
from shared.protocol.messages import Behind, Measured, encode_reply
from shared.protocol.site_id import NAMED, SiteId, site_of

Handler = Callable[[Message, Context], Message]
LoadData = Callable[[Context], Batches]
Mod = Callable[[Message, Context, Handler], Message]


def zeroth_order_handler(model: BuildModule, loss: Loss, data: LoadData) -> Handler:
    """Return a train handler that measures loss differences for ``dandelion.ZerothOrder``.

    Parameters with ``requires_grad`` are trained; buffers and other parameters stay as the server's
    initial arrays say. The module is in ``eval`` mode. The site is named by ``site`` or
    ``partition-id`` of the node's config, else by Flower's node id.

    Args:
        model: makes the module; the class of one that needs no arguments will do.
        loss: of the module and a batch: of each example (n,), or their mean ().
        data: of the context: an iterable of batches, such as a ``DataLoader``. A batch is whatever
            ``loss`` takes; its tensors are moved to the module's device. A client counts as many
            examples as ``len(data.dataset)``, or else as it measured.

    Raises (in the handler; the server names the client and the reason):
        DataError: the data gives no batch, or a loss is not finite or has a wrong shape.
        ConfigError: the module is not that of the server, or ``loss`` writes what it must read.
        WireError: the server uses another strategy, or another version of dandelion.

    Example:
        >>> from flwr.clientapp import ClientApp
        >>> from torch import nn, ones, zeros
        >>> def loss(module, batch):
        ...     pictures, classes = batch
        ...     return nn.functional.cross_entropy(module(pictures), classes, reduction="none")
        >>> def data(context):
        ...     return [(ones(8, 4), zeros(8).long())]
        >>> app = ClientApp()
        >>> handler = app.train()(zeroth_order_handler(lambda: nn.Linear(4, 3), loss, data))
    """

    def train(message: Message, context: Context) -> Message:
        ready = bring(model, unpack_request(message.content), context)
        site = site_in(context)
        if isinstance(ready, Behind):
            return _reply(message, site, ready, {})
        measured = measure(ready, site, loss, lambda: data(context))
        weight = {ready.run.weight_key: measured.examples}
        mean = nan if measured.loss is None else measured.loss
        return _reply(message, site, measured, {"train_loss": mean, **weight})

    return train


def zeroth_order_mod(model: BuildModule, arrayrecord_key: str = "arrays") -> Mod:
    """Return a mod that lets an evaluate handler written for ``FedAvg`` run unchanged.

    The server sends the entries that this client missed. The mod replays them and puts the arrays
    that follow from them into the message, as the handler expects them.

    Args:
        model: as for ``zeroth_order_handler``.
        arrayrecord_key: the name under which the handler reads the arrays.

    Raises (in the handler): ConfigError, WireError: as for ``zeroth_order_handler``.

    Example:
        >>> from flwr.app import Message, MetricRecord, RecordDict
        >>> from flwr.clientapp import ClientApp
        >>> from torch import nn
        >>> app = ClientApp()
        >>> @app.evaluate(mods=[zeroth_order_mod(lambda: nn.Linear(4, 3))])
        ... def evaluate(message, context):
        ...     module = nn.Linear(4, 3)
        ...     module.load_state_dict(message.content["arrays"].to_torch_state_dict())
        ...     metrics = MetricRecord({"accuracy": 0.5, "num-examples": 8})
        ...     return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
    """

    def bring_arrays(message: Message, context: Context, call_next: Handler) -> Message:
        ready = bring(model, unpack_request(message.content), context)
        site = site_in(context)
        if isinstance(ready, Behind):
            return _reply(message, site, ready, {})
        message.content[arrayrecord_key] = ArrayRecord(dict(ready.model.module.state_dict()))
        reply = call_next(message, context)
        if not reply.has_error():
            reply.content[OURS] = describe_reply(encode_reply(_position(ready)), site)
        return reply

    return bring_arrays


def site_in(context: Context) -> SiteId:
    """The identity of a node: that of its config, or else one made of Flower's node id."""
    config = context.node_config
    if "site" in config or "partition-id" in config:
        return site_of(config)
    word = int.from_bytes(sha256(str(context.node_id).encode()).digest()[:4], "little")
    return SiteId(NAMED | word % NAMED, f"node {context.node_id}")


def _position(ready: ReadyReplica) -> Measured:
    """A reply without numbers: it says at which parameters this client has evaluated."""
    none: Any = np.zeros(0, np.float32)
    request = ready.request
    return Measured(request.round, none, 1, 0.0, 0.0, ready.model.replica.digest())


def _reply(
    message: Message, site: SiteId, reply: Measured | Behind, metrics: Mapping[str, float]
) -> Message:
    sent = AppReply(encode_reply(reply), site, MetricRecord(dict(metrics)))
    content = pack_reply(sent)
    return Message(content=content, reply_to=message)
