"""Federations with sealed sums for tests: settings, runs that repeat, what sites really had."""

import copy

import numpy as np
import pytest
from federation import Network
from small_config import small_config

from client.sealed.sealed_site import SealedSite
from client.site.replica_host import _hosts
from shared.protocol.flower_records import RIDER, pack, rider_of, unpack
from shared.protocol.sealed_messages import (
    MAGIC_SUM_REPLY,
    decode_sum_reply,
    encode_sum_reply,
    is_sum_request,
)

SEALED = {
    "privacy": "shared", "privacy_noise": 1.0, "privacy_clip": 40.0, "num_rounds": 2,
    "round_timeout": 0.3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def sealed_home(tmp_path, monkeypatch):
    """A state folder of its own, and runs that all have one name, so that they repeat."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("server.ledger.run_folder.secrets.token_bytes", lambda count: b"r" * count)
    monkeypatch.setattr("server.rounds.sums.PATIENCE_S", 0.05)
    _hosts.clear()
    yield tmp_path / "state" / "dandelion" / "privacy"
    _hosts.clear()


def sealed_config(folder, name="run", sites=3, **changes):
    return small_config(folder, name, **{**SEALED, "num_clients": sites, **changes})


@pytest.fixture
def plain_steps(monkeypatch):
    """The grid steps (q,) that each site sealed, by round, attempt and slot."""
    known, real = {}, SealedSite.seal

    def seal(self, request, digest, name, steps, committee):
        known[request.round, request.attempt, self.identity.site.slot] = np.array(steps)
        return real(self, request, digest, name, steps, committee)

    monkeypatch.setattr(SealedSite, "seal", seal)
    return known


def payload_of(message):
    return b"" if message.has_error() else unpack(message.content)[0]


def is_sum(message, site=None):
    """Whether this is a member's sum, of site number ``site``."""
    is_reply = payload_of(message)[:2] == MAGIC_SUM_REPLY.to_bytes(2, "little")
    return is_reply and site in (None, message.metadata.src_node_id - 2)


def lie(message, by=1):
    """A member's sum with another first number."""
    twin, reply = copy.deepcopy(message), decode_sum_reply(payload_of(message))
    reply.sums[0, 0] ^= np.uint64(by)
    twin.content = pack(encode_sum_reply(reply))
    return twin


def rider_in(message):
    return b"" if message.has_error() else rider_of(message.content)


def lie_on_the_way(message, by=1):
    """A reply whose sum, which rides with it, has another first number."""
    twin, sums = copy.deepcopy(message), decode_sum_reply(rider_in(message))
    sums.sums[0, 0] ^= np.uint64(by)
    twin.content = pack(payload_of(message), rider=encode_sum_reply(sums))
    return twin


class Silence(Network):
    """A network on which some sites get no request for a sum: in some attempts, of some rounds."""

    def __init__(self, config, silent, attempts=None, rounds=None):
        super().__init__(config)
        self.silent, self.attempts, self.rounds, self.sum_requests = silent, attempts, rounds, []

    def _deliver(self, message):
        site = message.metadata.dst_node_id - 2
        if self._is_lost(site, rider := rider_in(message)):
            message = copy.deepcopy(message)
            del message.content["d"][RIDER]
        self.sum_requests += [
            (site, each) for each in (rider, payload_of(message)) if is_sum_(each)
        ]
        if self._is_lost(site, payload_of(message)):
            name = f"lost-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = name
            return name
        return super()._deliver(message)

    def _is_lost(self, site, payload):
        if not is_sum_(payload) or site not in self.silent:
            return False
        round_, attempt = (int.from_bytes(payload[at : at + 4], "little") for at in (4, 8))
        return attempt in (self.attempts or (attempt,)) and round_ in (self.rounds or (round_,))


def is_sum_(payload):
    return len(payload) > 2 and is_sum_request(payload)
