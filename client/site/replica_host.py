"""One process's replica, and the sites of the process that measure on it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from client.privacy.site_privacy import SitePrivacy
from client.sealed.sealed_site import answer_sum, open_sealed
from client.site.merged_clients import measure_merged
from client.site.node_config import NodeConfig
from client.site.replica_store import ReplicaStore
from client.site.run_settings import node_of, read_settings
from client.site.site import LocalSite
from shared.base.errors import (
    DandelionError,
    DataError,
    DivergedError,
    GapError,
    SnapshotError,
)
from shared.config.schema import Config
from shared.data.examples import Examples
from shared.modes.mode import MEASURE, parameters_round, plan_of
from shared.problem.load import load_problem
from shared.problem.source import source_digest, use_folder
from shared.protocol.entry import Entry
from shared.protocol.messages import (
    DIVERGED,
    MISSING,
    UNKNOWN,
    Behind,
    Hello,
    Measured,
    Request,
)
from shared.protocol.sealed_messages import Sealed, SumRequest
from shared.protocol.site_id import site_of
from shared.replica.snapshot import load_snapshot_
from shared.training.corpus import with_dataset
from shared.training.oracle import EVALUATION_BATCH, Oracle
from shared.training.site_data import Shards, SiteData

LOG = logging.getLogger("dandelion")
_hosts: dict[str, "ReplicaHost"] = {}


def host_of(run_config: Mapping[str, object], node_config: Mapping[str, object]) -> "ReplicaHost":
    """Return this process's host for a configuration; a new one replaces the old host.

    Virtual clients in one process share it: all replicas of a round are equal, so memory does not
    grow with the number of clients.
    """
    folder = str(node_config.get("store", ""))
    use_folder(str(node_config.get("app-dir", "")))
    config, decisive = read_settings(run_config, node_config)
    name = f"{decisive} {folder}"
    if name not in _hosts:
        forget_hosts()
        every_s = float(str(node_config.get("store-every", 0.0)))
        _hosts[name] = ReplicaHost(config, ReplicaStore(Path(folder), every_s) if folder else None)
    return _hosts[name]


def save_all() -> None:
    """Write the replicas of this process's hosts to their stores, before the hosts go."""
    for host in _hosts.values():
        host.save()


def forget_hosts() -> None:
    """Save and drop this process's hosts: what comes next reads data, secrets and budgets anew."""
    save_all()
    _hosts.clear()


class ReplicaHost:
    """Follows one run at a time and lets its sites measure.

    Invariant: the replica is at some round of run ``_run``; sites only read it.
    """

    def __init__(self, config: Config, store: ReplicaStore | None = None) -> None:
        self._config, self._store = config, store
        self._oracle = Oracle.of(config)
        self._data: dict[tuple[str, ...], SiteData] = {}  # by names of sites' own data and columns
        self._run = b""
        self._sites: dict[str, LocalSite] = {}
        self._nodes: dict[str, dict[str, object]] = {}  # the node configs that they were made by
        self._ready: dict[str, Measured] = {}  # by site, measured together and not requested yet

    def hello(self, node_config: Mapping[str, object]) -> Hello:
        """Introduce a site: who it is, where its replica is, and what it can do."""
        site, replica = self._site(node_config), self._oracle.replica
        at = replica.round, self._run
        if not self._run and self._store is not None:
            at = self._store.read_position()
        return Hello(
            site=site.id.name,
            slot=site.id.slot,
            round=at[0],
            base=self._oracle.base.hex(),
            code=source_digest(self._config.model.app).hex(),
            run=at[1].hex(),
            examples=site.count,
            device=", ".join([str(replica.model.flat.device), *self._oracle.other_devices]),
            dtype=str(replica.model.flat.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            can_backpropagate=site.can_backpropagate,
            roster=site.roster,
        )

    def train(
        self, node_config: Mapping[str, object], request: Request, snapshot: bytes | None
    ) -> Measured | Behind | Sealed:
        """Bring the replica to where the request's round is measured, then measure.

        With staleness a server that was killed may request a round again that the replica is past.
        A replica cannot go back, but its sites remember their answers.
        """
        site = self._site(node_config)
        node_of(node_config).check_parameters(request, snapshot is not None)
        self._follow(request.run)
        if request.reset and self._config.federation.downlink != "dense":
            site.forget_residual()
        is_past = self._oracle.replica.round > parameters_round(self._config, request.round)
        if is_past and (answer := site.recall(request)) is not None:
            return answer
        if (behind := self._bring(request, snapshot)) is not None:
            return behind
        ready = self._ready.pop(site.id.name, None)
        if ready is not None and (ready.round, ready.digest) == (request.round, self._digest()):
            return ready
        return site.measure(self._oracle, request)

    def add_up(self, node_config: Mapping[str, object], request: SumRequest) -> bytes:
        """Answer a request for a sum of sealed numbers, encoded; the replica is not used."""
        return answer_sum(self._site(node_config).sealed, request)

    def prepare(
        self, node_configs: Sequence[Mapping[str, object]], request: Request, snapshot: bytes | None
    ) -> None:
        """Measure together what these nodes will be requested to measure.

        If that cannot be done, ``train`` measures each node alone, or says why it cannot.
        """
        sites = [self._site(node_config) for node_config in node_configs]
        if any(plan_of(self._config, request.round, s.can_backpropagate) != MEASURE for s in sites):
            return
        if self._bring(request, snapshot) is not None:
            return
        for site in sites:
            site.keep_ahead(self._oracle, request.round)
        measured = measure_merged(self._oracle, sites, request)
        self._ready = {site.id.name: each for site, each in zip(sites, measured, strict=True)}

    def _bring(self, request: Request, snapshot: bytes | None) -> Behind | None:
        """Bring the replica to where it is measured; return why that cannot be done, or None."""
        if torch.get_num_threads() != self._config.run.threads:
            torch.set_num_threads(self._config.run.threads)
        self._follow(request.run)
        try:
            self._catch_up(request, snapshot)
        except GapError:
            return Behind(self._oracle.replica.round, MISSING)
        except (DivergedError, SnapshotError):
            round_ = self._oracle.replica.round
            self._restart()
            return Behind(round_, DIVERGED)
        return None

    def _digest(self) -> bytes:
        return self._oracle.replica.digest()

    def _follow(self, run: bytes) -> None:
        """Leave the run that the replica follows for another, if it is another."""
        if run == self._run:
            return
        if self._oracle.replica.round:
            self._restart()
        self._run = run
        if self._store is not None:
            self._store.round = 0
            self._store.load_(self._oracle.replica, run)

    def _catch_up(self, request: Request, snapshot: bytes | None) -> None:
        """Apply what the request has.

        Raises:
            GapError: entries are missing between the replica's round and that of the request.
            DivergedError: the parameters are not those that the server expects.
            SnapshotError: the snapshot cannot be used.
        """
        replica = self._oracle.replica
        at = parameters_round(self._config, request.round)
        is_there = replica.round == at and replica.digest() == request.digest
        if request.reset and snapshot is None and replica.round and not is_there:
            self._restart()
            replica = self._oracle.replica
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
        """Write the replica to the store, if there is one without it."""
        replica = self._oracle.replica
        if self._store is not None and replica.round not in (0, self._store.round):
            self._store.save(replica, self._run)

    def _restart(self) -> None:
        """Go back to the base model, made anew; data and sites stay."""
        self._oracle = Oracle.of(self._config)

    def _shards(self, node: NodeConfig) -> Shards:
        """The data that a site measures on and backpropagates on, of the run or its own.

        Raises:
            DataError: the node's own data cannot be used. The reason is only in the log of this
                process: errors go to the server, which must not learn names of files and classes.
        """
        own = node.data, node.bp_data
        name = (*own, *map("=".join, node.columns.items()))
        try:
            if name not in self._data:
                self._data[name] = SiteData.of(
                    self._config, self._oracle.language_model, *own, node.columns
                )
            return self._data[name].shard(node.partition_id, node.num_partitions)
        except (DandelionError, OSError):
            if not any(own) and not self._loads_own():
                raise
            LOG.exception("own data %s", " and ".join(filter(None, own)))
            raise DataError("this node's own data cannot be used: its log says why") from None

    def _own(self, node: NodeConfig) -> Config | None:
        """The run as it reads the node's own data; None if it has none."""
        return with_dataset(self._config, node.data, node.columns) if node.data else None

    def _loads_own(self) -> bool:
        """Whether the problem of the run has each site load examples of its own."""
        app = self._config.model.app
        return bool(app) and load_problem(app, self._config.run.app_dir).problem.takes_site

    def _try_objective(self, examples: Examples) -> None:
        first = examples.batch(np.arange(min(EVALUATION_BATCH, len(examples))))
        self._oracle.check_objective(torch.from_numpy(first))

    def _site(self, node_config: Mapping[str, object]) -> LocalSite:
        name = site_of(node_config)
        if self._nodes.get(name.name) != dict(node_config):  # its data or its policy is another
            node = NodeConfig.of(node_config)
            node.check_base(self._oracle.base)
            shards = self._shards(node)
            self._try_objective(shards.queries)
            privacy = SitePrivacy.open(
                name.name, node, self._own(node), self._config, shards.queries
            )
            simulated = 0 if node.data or node.site else node.num_partitions
            self._sites[name.name] = LocalSite(
                name, shards.queries, self._config, shards.gradients, node.can_backpropagate,
                shards.held_out, privacy, open_sealed(name, node, simulated, privacy),
            )  # fmt: skip
            self._nodes[name.name] = dict(node_config)
        return self._sites[name.name]
