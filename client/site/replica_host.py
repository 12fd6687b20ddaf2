"""One process's share of the work: a replica, and the sites that it serves."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from client.site.merged_clients import measure_merged
from client.site.node_config import NodeConfig
from client.site.replica_store import ReplicaStore
from client.site.site import LocalSite
from shared.base.errors import DandelionError, DataError, DivergedError, GapError, SnapshotError
from shared.base.source_digest import code_digest
from shared.config.schema import RESUMABLE, Config
from shared.modes.mode import MEASURE, measured_at, plan_of
from shared.protocol.entry import Entry
from shared.protocol.messages import DIVERGED, MISSING, UNKNOWN, Behind, Hello, Measured, Request
from shared.protocol.site_id import site_of
from shared.replica.snapshot import load_snapshot_
from shared.training.oracle import Oracle
from shared.training.site_data import Shards, SiteData
from shared.training.validate import configure

LOG = logging.getLogger("dandelion")
_hosts: dict[str, "ReplicaHost"] = {}


def host_of(run_config: Mapping[str, object], node_config: Mapping[str, object]) -> "ReplicaHost":
    """This process's host for a configuration; a new configuration replaces the old host.

    Virtual clients in one process share it: all replicas of a round are equal, so memory does not
    grow with the number of clients.
    """
    folder, device = str(node_config.get("store", "")), node_config.get("device", "")
    given = {**run_config, **({"device": device} if device else {})}
    config, decisive = _read(tuple((key, type(value), value) for key, value in given.items()))
    name = f"{decisive} {folder}"
    if name not in _hosts:
        save_all()
        _hosts.clear()
        every_s = float(str(node_config.get("store-every", 0.0)))
        _hosts[name] = ReplicaHost(config, ReplicaStore(Path(folder), every_s) if folder else None)
    return _hosts[name]


@lru_cache(maxsize=8)
def _read(given: tuple[tuple[str, type, object], ...]) -> tuple[Config, str]:
    """A configuration, and what of it decides numbers; read once, not for every message."""
    config = configure({key: value for key, _, value in given})
    decisive = {k: v for k, v in config.to_run_config().items() if k not in RESUMABLE}
    return config, json.dumps(decisive, sort_keys=True)


def save_all() -> None:
    """Write what this process's hosts have not written yet, before they go."""
    for host in _hosts.values():
        host.save()


class ReplicaHost:
    """Follows one run at a time and lets its sites measure.

    Invariant: the replica is at some round of run ``_run``; sites only read it.
    """

    def __init__(self, config: Config, store: ReplicaStore | None = None) -> None:
        self._config, self._store = config, store
        self._learner = Oracle.of(config)
        self._data: dict[tuple[str, str], SiteData] = {}  # by what sites have of their own
        self._run = b""
        self._sites: dict[str, LocalSite] = {}
        self._ready: dict[str, Measured] = {}  # by site, measured together and not asked for yet

    def hello(self, node_config: Mapping[str, object]) -> Hello:
        """What the server asks a site that it meets."""
        site, replica = self._site(node_config), self._learner.replica
        at = replica.round, self._run
        if not self._run and self._store is not None:
            at = self._store.where()
        return Hello(
            site=site.id.name,
            slot=site.id.slot,
            round=at[0],
            base=self._learner.base.hex(),
            code=code_digest().hex(),
            run=at[1].hex(),
            examples=site.count,
            device=str(replica.model.flat.device),
            dtype=str(replica.model.flat.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            can_backpropagate=site.can_backpropagate,
        )

    def train(
        self, node_config: Mapping[str, object], request: Request, snapshot: bytes | None
    ) -> Measured | Behind:
        """Bring the replica to where the request's round is measured, then measure.

        With staleness a server that was killed may ask again for a round that the replica is past;
        a replica cannot go back, but what was answered is kept.
        """
        site = self._site(node_config)
        self._follow(request.run)
        if request.reset and self._config.downlink != "dense":
            site.forget()
        past = self._learner.replica.round > measured_at(self._config, request.round)
        if past and (answered := site.answered(request)) is not None:
            return answered
        if (behind := self._brought(request, snapshot)) is not None:
            return behind
        ready = self._ready.pop(site.id.name, None)
        if ready is not None and (ready.round, ready.digest) == (request.round, self._digest()):
            return ready
        return site.measure(self._learner, request)

    def prepare(
        self, node_configs: Sequence[Mapping[str, object]], request: Request, snapshot: bytes | None
    ) -> None:
        """Measure what these nodes are about to be asked for, all of them together.

        What cannot be measured so is left to ``train``, which says why.
        """
        sites = [self._site(node_config) for node_config in node_configs]
        if any(plan_of(self._config, request.round, s.can_backpropagate) != MEASURE for s in sites):
            return
        if self._brought(request, snapshot) is not None:
            return
        measured = measure_merged(self._learner, sites, request)
        self._ready = {site.id.name: found for site, found in zip(sites, measured, strict=True)}

    def _brought(self, request: Request, snapshot: bytes | None) -> Behind | None:
        """Bring the replica to where it is measured; or say why it is not there."""
        if torch.get_num_threads() != self._config.threads:
            torch.set_num_threads(self._config.threads)
        self._follow(request.run)
        try:
            self._catch_up(request, snapshot)
        except GapError:
            return Behind(self._learner.replica.round, MISSING)
        except (DivergedError, SnapshotError):
            round_ = self._learner.replica.round
            self._restart()
            return Behind(round_, DIVERGED)
        return None

    def _digest(self) -> bytes:
        return self._learner.replica.digest()

    def _follow(self, run: bytes) -> None:
        if run == self._run:
            return
        if self._learner.replica.round:
            self._restart()
        self._run = run
        if self._store is not None:
            self._store.round = 0
            self._store.load_(self._learner.replica, run)

    def _catch_up(self, request: Request, snapshot: bytes | None) -> None:
        replica = self._learner.replica
        at = measured_at(self._config, request.round)
        there = replica.round == at and replica.digest() == request.digest
        if request.reset and snapshot is None and replica.round and not there:
            self._restart()
            replica = self._learner.replica
        if snapshot is not None:
            load_snapshot_(replica, snapshot, request.run)
        replica.apply(Entry.decode(data) for data in request.entries)
        if replica.round != at:
            raise GapError(f"round {at} expected, got {replica.round}")
        if request.digest != UNKNOWN:
            replica.check(request.digest)
        if self._store is not None and self._store.is_due(replica.round):
            self._store.save(replica, request.run)

    def save(self) -> None:
        """Write the replica to the store, where there is one that has not got it yet."""
        replica = self._learner.replica
        if self._store is not None and replica.round not in (0, self._store.round):
            self._store.save(replica, self._run)

    def _restart(self) -> None:
        """Back to the base model, made anew; data and sites stay."""
        self._learner = Oracle.of(self._config)

    def _shards(self, node: NodeConfig) -> Shards:
        """What a site measures on and backpropagates on, as the run says or the node itself.

        Raises:
            DataError: the node's own cannot be used. Why, stays in the log of this process: errors
                go to the server, and names of files and classes are no concern of its.
        """
        own = node.data, node.bp_data
        try:
            if own not in self._data:
                self._data[own] = SiteData.of(self._config, self._learner.language_model, *own)
            return self._data[own].shard(node.partition_id, node.num_partitions)
        except (DandelionError, OSError):
            if not any(own):
                raise
            LOG.exception("own data %s", " and ".join(filter(None, own)))
            raise DataError("this node's own data cannot be used: its log says why") from None

    def _site(self, node_config: Mapping[str, object]) -> LocalSite:
        name = site_of(node_config)
        if name.name not in self._sites:
            node = NodeConfig.of(node_config)
            shards = self._shards(node)
            self._sites[name.name] = LocalSite(
                name, shards.queries, self._config, shards.gradients, node.can_backpropagate,
                shards.held_out,
            )  # fmt: skip
        return self._sites[name.name]
