"""A client's replica between messages: in this process, and in the state of its node.

Flower may answer each message in a new process, so what a replica needs is in ``context.state``:
the run, the untrained tensors if they came from the server, and a snapshot. Virtual clients of one
process share the replica in memory, since all replicas of a round are equal.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Context, RecordDict
from torch import Tensor

from shared.apps.app_run import AppRun
from shared.apps.flat_module import BuildModule, FlatModule
from shared.apps.records import (
    FROZEN,
    OURS,
    SNAPSHOT,
    AppRequest,
    pack_bytes,
    pack_tensors,
    unpack_bytes,
    unpack_tensors,
)
from shared.base.errors import ConfigError, DivergedError, GapError, SnapshotError, WireError
from shared.base.files import code_digest
from shared.protocol.entry import Entry
from shared.protocol.messages import DIVERGED, MISSING, Behind, Request, decode_request
from shared.replica.snapshot import encode_snapshot, load_snapshot_

LOG = logging.getLogger("dandelion")
STATE_MOST = 200 << 20  # bytes; Flower 1.41 silently loses a state that takes 5 s to send
NAME, ABOUT, ROUND = "name", "run", "round"
_replicas: dict[str, tuple[bytes, FlatModule]] = {}  # by build function: run, replica


@dataclass(frozen=True)
class ClientState:
    """What a node's state has of a run."""

    run: bytes = b""
    about: str = ""  # the run as ``AppRun`` encodes it
    snapshot: bytes = b""
    frozen: Mapping[str, Tensor] | None = None  # None: those that the client builds itself

    @classmethod
    def read(cls, state: RecordDict) -> "ClientState":
        """Read what ``write`` wrote; empty if there is nothing, or nothing that can be used."""
        ours = state.get(OURS)
        try:
            if not isinstance(ours, ConfigRecord):
                return cls()
            frozen = unpack_tensors(state, FROZEN) if FROZEN in state else None
            run, about = bytes(str(ours[NAME]), "ascii"), str(ours[ABOUT])
            return cls(bytes.fromhex(run.decode()), about, unpack_bytes(state, SNAPSHOT), frozen)
        except (WireError, KeyError, ValueError) as error:
            LOG.warning("state of this node not used, the server will send a model: %s", error)
            return cls()

    def write(self, state: RecordDict, round_: int) -> None:
        """Put it into a node's state, in place of what was there."""
        drop_state(state)
        size = len(self.snapshot) + sum(t.nbytes for t in (self.frozen or {}).values())
        if size > STATE_MOST:
            LOG.warning(
                "this node's replica of %d bytes is kept in memory alone: Flower's state holds %d; "
                "a new process is sent the model again",
                size,
                STATE_MOST,
            )
            return
        state[OURS] = ConfigRecord({NAME: self.run.hex(), ABOUT: self.about, ROUND: round_})
        state[SNAPSHOT] = pack_bytes(self.snapshot)
        if self.frozen is not None:
            state[FROZEN] = pack_tensors(self.frozen)


def drop_state(state: RecordDict) -> None:
    """Remove what is ours from a node's state."""
    for name in (OURS, SNAPSHOT, FROZEN):
        if name in state:
            del state[name]


@dataclass(frozen=True)
class ReadyReplica:
    """A replica at the round before the one that is requested, and what the request says."""

    model: FlatModule
    run: AppRun
    request: Request


def bring(build: BuildModule, sent: AppRequest, context: Context) -> ReadyReplica | Behind:
    """Bring this client's replica to where a request is measured, and keep it.

    Returns:
        The replica, or why the server must send more: ``Behind``.

    Raises:
        WireError: the bytes are no request, or server and client have other source files.
        ConfigError: the module that ``build`` makes is not that of the server.
    """
    request = decode_request(sent.request)
    if request.code != code_digest():
        raise WireError(
            "this client has another version of dandelion than the server: source files "
            f"{request.code.hex()} expected, got {code_digest().hex()}"
        )
    state = ClientState.read(context.state)
    own = state if state.run == request.run else ClientState()
    about = sent.run or own.about
    if not about:
        return Behind(0, MISSING)
    run = AppRun.decode(about)
    name = f"{build.__module__}.{getattr(build, '__qualname__', type(build).__name__)}"
    model = _model_in_memory(name, request) or _restore(build, run, own, request)
    before = model.replica.round
    try:
        _follow_(model, run, sent, request)
    except GapError:
        return Behind(model.replica.round, MISSING)
    except DivergedError as error:
        LOG.warning("this client's replica is dropped: %s", error)
        _replicas.pop(name, None)
        drop_state(context.state)
        return Behind(before, DIVERGED)
    _replicas[name] = request.run, model
    _keep(model, about, own, sent, context, request)
    return ReadyReplica(model, run, request)


def _model_in_memory(name: str, request: Request) -> FlatModule | None:
    """The replica of this process if it is of the run and not past the request."""
    run, model = _replicas.get(name, (b"", None))
    if model is None or run != request.run or model.replica.round >= request.round:
        return None
    return model


def _restore(build: BuildModule, run: AppRun, own: ClientState, request: Request) -> FlatModule:
    """A replica as this node's state has it, or at round 0."""
    model = FlatModule.of(build(), run.config)
    try:
        if own.frozen is not None:
            model.load_frozen_(own.frozen)
        if own.snapshot:
            load_snapshot_(model.replica, own.snapshot, request.run, "state of this node")
    except SnapshotError as error:
        LOG.warning("state of this node not used, the server will send a model: %s", error)
        return FlatModule.of(build(), run.config)
    return model


def _follow_(model: FlatModule, run: AppRun, sent: AppRequest, request: Request) -> None:
    """Load and apply what a request has.

    Raises:
        GapError: more is needed.
        DivergedError: the parameters are not those of the server.
        ConfigError: the module is another.
    """
    replica = model.replica
    if sent.frozen is not None:
        _load_frozen_(model, run, sent.frozen)
    elif model.digest_of_frozen().hex() != run.frozen:
        raise GapError("the untrained tensors are needed")
    if sent.snapshot is not None:
        _load_snapshot_(model, sent.snapshot, request)
    elif not replica.round and replica.digest().hex() != run.initial:
        raise GapError("the parameters of round 0 are needed")
    replica.apply(Entry.decode(data) for data in request.entries)
    if replica.round != request.round - 1:
        raise GapError(f"round {request.round - 1} expected, got {replica.round}")
    replica.check(request.digest)


def _load_frozen_(model: FlatModule, run: AppRun, frozen: Mapping[str, Tensor]) -> None:
    try:
        model.load_frozen_(frozen)
    except SnapshotError as error:
        raise ConfigError(f"this client's model is not that of the server: {error}") from error
    if model.digest_of_frozen().hex() != run.frozen:
        spans = [f"{s.name} {s.shape}" for s in model.replica.model.layout.tensors]
        raise ConfigError(
            "this client's model is not that of the server: it trains "
            f"{', '.join(spans)}, and the server trains others"
        )


def _load_snapshot_(model: FlatModule, snapshot: bytes, request: Request) -> None:
    replica = model.replica
    if replica.round == request.round - 1 and replica.digest() == request.digest:
        return
    try:
        load_snapshot_(replica, snapshot, request.run, "model from the server")
    except SnapshotError as error:
        raise ConfigError(f"this client's model is not that of the server: {error}") from error


def _keep(
    model: FlatModule,
    about: str,
    own: ClientState,
    sent: AppRequest,
    context: Context,
    request: Request,
) -> None:
    """Write the replica into the node's state, unless it is there already."""
    record = context.state.get(OURS)
    at = record.get(ROUND) if own.snapshot and isinstance(record, ConfigRecord) else None
    if at == model.replica.round and sent.snapshot is None:
        return
    frozen = sent.frozen if sent.frozen is not None else own.frozen
    snapshot = encode_snapshot(model.replica, request.run)
    ClientState(request.run, about, snapshot, frozen).write(context.state, model.replica.round)
