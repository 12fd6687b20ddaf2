"""A federation in this process for tests: real server, real sites, a grid that can misbehave."""

import copy
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from flwr.app import MessageType
from small_config import small_config
from torch import Tensor

from client.app import app
from client.site import replica_host
from dandelion.engines.local import LocalGrid, contexts_of
from server.ledger.ledger import Ledger
from server.ledger.run_folder import open_run
from server.run import train
from shared.config.schema import Config
from shared.protocol.flower_records import pack, unpack
from shared.protocol.messages import decode_reply, encode_reply
from shared.training.oracle import Oracle
from shared.training.validate import configure

config = small_config


@contextmanager
def scratch():
    """A folder for one example; pytest's own are one per test."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


class Network(LocalGrid):
    """A LocalGrid that records its messages, and may change the replies.

    ``change`` gets each reply and returns the list of replies that arrive in its place.
    """

    def __init__(self, config, client=app, change=lambda reply: [reply]):
        super().__init__(client, contexts_of(config))
        self.change, self.sent, self.received = change, [], []

    def push_messages(self, messages):
        listed = list(messages)
        names = super().push_messages(listed)
        self.sent += listed
        return names

    def pull_messages(self, message_ids):
        arrived = [r for reply in super().pull_messages(message_ids) for r in self.change(reply)]
        self.received += arrived
        return arrived


class Processes:
    """A client whose nodes have separate memories, as processes have."""

    def __init__(self):
        self.memories = {}

    def __call__(self, message, context):
        before, replica_host._hosts = (
            replica_host._hosts, self.memories.setdefault(context.node_id, {}),
        )  # fmt: skip
        try:
            return app(message, context)
        finally:
            replica_host._hosts = before

    def host(self, node_id):
        """The replica host of a node that has had a message."""
        (host,) = self.memories[node_id].values()
        return host


@dataclass
class RunResult:
    """The end of a run: configuration, digest, summary, parameters, entries and tables."""

    config: Config
    digest: str
    summary: dict
    flat: Tensor
    entries: list
    rows: dict  # of the ledger, by table


def federate(config, grid=None, on_round=lambda run, round_: None):
    """Train as ``serve`` does, without the picture and the saved model."""
    with open_run(config) as run:
        grid = grid or Network(config)
        report = train(grid, run, lambda report, round_: on_round(run, round_))
        return RunResult(
            config,
            run.oracle.replica.digest().hex(),
            report.summary(),
            run.oracle.replica.model.flat.clone(),
            run.ledger.payloads(0, run.ledger.last_round),
            tables(run.ledger),
        )


def tables(ledger):
    """The rows of a ledger's tables."""
    names = ("entries", "contributions", "refusals", "skips", "traffic", "snapshots", "metrics")
    return {name: select(ledger, f"SELECT * FROM {name}") for name in names}


def select(ledger, query):
    """Rows of a ledger's file, for what no named question of the ledger asks."""
    with closing(sqlite3.connect(f"{ledger.path.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def resumed(config, **changes):
    """The configuration that resumes a run."""
    folder = f"{config.run.output_dir}/{config.run.name}"
    keys = {key.replace("_", "-"): value for key, value in changes.items()}
    return configure(config.to_run_config() | {"resume": folder} | keys)


@contextmanager
def ledger_of(config):
    """The ledger of a finished run."""
    ledger = Ledger.open(folder_of(config) / "ledger.sqlite")
    try:
        yield ledger
    finally:
        ledger.close()


def folder_of(config):
    """The folder of a run's files."""
    from server.ledger.run_folder import run_folder

    return run_folder(config)


def replayed(config, ledger, to):
    """The parameters of a round, from base model and ledger alone."""
    replica = Oracle.of(config).replica
    replica.apply(ledger.entry(round_) for round_ in range(1, to + 1))
    return replica.model.flat


def is_reply(message, site=None, round_=None):
    """Whether this is the measurement of a round (None: any) by site number ``site``."""
    about = message.metadata
    return (
        about.message_type == MessageType.TRAIN
        and site in (None, about.src_node_id - 2)
        and str(round_) in ("None", about.group_id)
    )


def altered(reply, change):
    """A copy of a reply whose measurement went through ``change``."""
    twin = copy.deepcopy(reply)
    measured = decode_reply(unpack(twin.content)[0])
    twin.content = pack(encode_reply(change(measured)))
    return twin


def with_payload(reply, payload, snapshot=None):
    """A copy of a reply that carries other bytes."""
    twin = copy.deepcopy(reply)
    twin.content = pack(payload, snapshot)
    return twin
