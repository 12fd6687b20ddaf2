"""What can go wrong in a federation of tests: crashes at any write, replies lost, late or twice."""

import copy
import os
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from federation import Network, federate, folder_of, is_reply, resumed
from flwr.app import Error, MessageType
from flwr.common.serde import message_to_proto

from server.ledger.database import Database
from shared.protocol.entry import Entry
from shared.protocol.flower_records import unpack
from shared.protocol.messages import Measured, decode_reply, decode_request

SITE, ROUND = 1, 2  # who misbehaves, in which round of three


class Crash(BaseException):
    """The process is gone."""


@contextmanager
def crash_at(number):
    """Raise instead of the n-th thing that is written; the list tells how many there were."""
    written = []

    def counted(real):
        def call(*arguments, **keywords):
            written.append(real.__name__)
            if len(written) == number:
                raise Crash
            return real(*arguments, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (Database, "write"),
            (Database, "write_all"),
            (os, "fsync"),
            (Path, "replace"),
            (Path, "rename"),
        ):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        yield written


def go_on(chosen):
    """Finish a run that was cut off; one that never came to be is begun."""
    there = (folder_of(chosen) / "ledger.sqlite").exists()
    return federate(resumed(chosen) if there else chosen)


def through_crashes(chosen, numbers):
    """Crash at each of these writes in turn, going on each time; then finish the run."""
    for number in numbers:
        with suppress(Crash), crash_at(number):
            go_on(chosen)
    return go_on(chosen)


class Cut(BaseException):
    """Stands for a server that is killed."""


def cut_at(last):
    """A hook that kills the server once a round is done."""

    def on_round(run, round_):
        if round_ == last:
            raise Cut

    return on_round


class Chaos(Network):
    """Loses some replies and brings the others in any order, some twice, lost ones a round late."""

    def __init__(self, config, lost, order=None):
        super().__init__(config)
        self.lost, self.order, self.late, self.rounds = lost, order, [], {}

    def push_messages(self, messages):
        listed = list(messages)
        ids = list(super().push_messages(listed))
        self.rounds |= {k: self.key(m)[0] for k, m in zip(ids, listed, strict=True)}
        return ids

    def pull_messages(self, message_ids):
        message_ids = list(message_ids)
        arrived = super(Network, self).pull_messages(message_ids)
        gone = [r for r in arrived if is_reply(r) and self.key(r) in self.lost]
        replies = [r for r in arrived if r not in gone]
        if self.order is not None:
            replies += [
                copy.deepcopy(r) for r in replies if is_reply(r) and self.order.random() < 0.5
            ]
            now = max(map(self.rounds.get, message_ids))  # the round that is being closed
            replies += [r for r in self.late if self.key(r)[0] < now]
            self.late = [r for r in self.late if self.key(r)[0] == now] + gone
            self.order.shuffle(replies)
        self.received += replies
        return replies

    @staticmethod
    def key(reply):
        return int(reply.metadata.group_id), reply.metadata.src_node_id - 2


def kind_of(message):
    """What a message is counted as, judged by what is in it."""
    if message.has_error() or message.metadata.message_type == MessageType.QUERY:
        return "control"
    payload, snapshot = unpack(message.content)
    if snapshot is not None:
        return "snapshot"
    if message.metadata.dst_node_id == 1:
        reply = decode_reply(payload)
        return "gradient" if isinstance(reply, Measured) and reply.gradient else "scalars"
    entries = map(Entry.decode, decode_request(payload).entries)
    return "gradient" if any(entry.payload for entry in entries) else "scalars"


def crossed(network):
    """Payload and message bytes of all that crossed a network, by direction and kind."""
    sizes = Counter()
    for direction, messages in (("down", network.sent), ("up", network.received)):
        for message in messages:
            kind, content = kind_of(message), {} if message.has_error() else message.content
            values = [value for record in content.values() for value in record.values()]
            payload = sum(len(v if isinstance(v, bytes) else v.data) for v in values)
            sizes[direction, kind, "payload"] += payload
            size = len(message_to_proto(message).SerializeToString())
            sizes[direction, kind, "message"] += size
    return sizes


def failed(reply):
    twin = copy.deepcopy(reply)
    twin.__dict__["_content"] = None
    twin.__dict__["_error"] = Error(code=8, reason="ClientApp stopped responding.")
    return [twin]


def misbehaving(how, site=SITE, round_=ROUND):
    return lambda reply: how(reply) if is_reply(reply, site, round_) else [reply]
