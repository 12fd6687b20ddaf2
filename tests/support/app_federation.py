"""A small problem and a federation of stock Flower apps in one process, for tests of a strategy."""

import copy

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import client.handlers.client_replica as in_memory
from client.handlers.handlers import zeroth_order_handler, zeroth_order_mod
from dandelion.engines.local import LocalGrid

CLASSES, WIDTH = 3, 4


def small_net():
    """A net of 55 trained parameters, with a buffer and a frozen parameter."""
    net = nn.Sequential(nn.Linear(WIDTH, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, CLASSES))
    net[1].bias.requires_grad_(False)
    return net


def start_net():
    """The same with weights that are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return small_net()


def examples(context):
    """64 examples of this client, in shuffled batches of 16."""
    random = torch.Generator().manual_seed(context.node_config["partition-id"])
    inputs = torch.randn(64, WIDTH, generator=random)
    return DataLoader(TensorDataset(inputs, inputs[:, :CLASSES].argmax(1)), 16, shuffle=True)


def loss(module, batch):
    return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


def evaluate(message, context):
    """A handler as it is written for FedAvg."""
    net = small_net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    net.eval()
    hits = sum((net(x).argmax(1) == y).sum().item() for x, y in examples(context))
    metrics = MetricRecord({"accuracy": hits / 64, "num-examples": 64})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


def client_app(build=small_net, loss=loss, data=examples, evaluate=evaluate):
    app = ClientApp()
    app.train()(zeroth_order_handler(build, loss, data))
    app.evaluate(mods=[zeroth_order_mod(build)])(evaluate)
    return app


class ManyApps:
    """Nodes with an app each, and faults: what they lose, and what they send in its place."""

    def __init__(self, count=4, apps=None):
        self.apps = apps or {}
        self.default = client_app()
        self.contexts = {2 + number: node(number) for number in range(count)}
        self.silent, self.received = set(), []
        self.change = {}  # by node: changes its reply
        self.fresh = False  # every message is answered by a new process

    def __call__(self, message, context):
        self.received.append(message)
        if self.fresh:
            forget_processes()
        node_id = context.node_id
        if node_id in self.silent:
            raise ConnectionError("gone")
        reply = self.apps.get(node_id, self.default)(message, context)
        return self.change.get(node_id, lambda reply: reply)(reply)

    def grid(self):
        return FlakyGrid(self, self.contexts)


class FlakyGrid(LocalGrid):
    """A grid that loses the replies of some nodes, and in which nodes come and go."""

    lost = frozenset()
    absent = frozenset()

    def get_node_ids(self):
        return [each for each in super().get_node_ids() if each not in self.absent]

    def send_and_receive(self, messages, *, timeout=None):
        replies = list(super().send_and_receive(messages, timeout=timeout))[::-1]
        return [each for each in replies if each.metadata.src_node_id not in self.lost]


def node(number):
    config = {"partition-id": number, "num-partitions": 4}
    return Context(
        run_id=1, node_id=2 + number, node_config=config, state=RecordDict(), run_config={}
    )


def forget_processes():
    """What a new process has in memory: no replica."""
    in_memory._replicas.clear()


def arrays_of(module):
    return ArrayRecord(copy.deepcopy(dict(module.state_dict())))
