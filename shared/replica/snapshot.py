"""Snapshots: parameters and optimizer state of one round as a file from which replay can start."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from shared.base.errors import SnapshotError
from shared.replica.replica import Replica, digest_of

FLAT, STATE = "flat", "optimizer."


def encode_snapshot(replica: Replica, run: bytes) -> bytes:
    """Return a safetensors file: the flat vector, the optimizer's tensors, and their digests."""
    state = {name: value.detach().cpu() for name, value in replica.state().items()}
    header = {"round": str(replica.round), "run": run.hex(), "digest": replica.digest().hex()}
    tensors = {FLAT: replica.model.flat.detach().cpu()}
    tensors |= {STATE + name: value for name, value in state.items()}
    return save(tensors, header | {"seal": _seal(header, state)})


def load_snapshot_(replica: Replica, data: bytes, run: bytes, name: str = "snapshot") -> None:
    """Bring ``replica`` to the state of a snapshot, or leave it as it is if that is impossible.

    Raises:
        SnapshotError: the snapshot is damaged or of another run, model or optimizer; the message
            begins with ``name``.
    """
    tensors, header = _read(data, name)
    if header.get("run") != run.hex():
        raise SnapshotError(
            f"{name}: a snapshot of run {run.hex()} expected, got {header.get('run')}"
        )
    flat = tensors.pop(FLAT, torch.empty(0))
    if flat.shape != replica.model.flat.shape or flat.dtype != replica.model.flat.dtype:
        raise SnapshotError(
            f"{name}: {tuple(replica.model.flat.shape)} {replica.model.flat.dtype} expected, "
            f"got {tuple(flat.shape)} {flat.dtype}"
        )
    state = {key.removeprefix(STATE): value for key, value in tensors.items()}
    if header.get("digest") != digest_of(flat).hex() or header.get("seal") != _seal(header, state):
        raise SnapshotError(f"{name}: damaged, its digests do not fit its tensors")
    try:
        replica.load_state(state)  # all of it or nothing
    except SnapshotError as error:
        raise SnapshotError(f"{name}: {error}") from error
    replica.model.flat.copy_(flat)
    replica.set_round(int(header["round"]))


def snapshot_position(path: Path) -> tuple[int, bytes]:
    """Return round and run of a snapshot file as its header says, without a check of its tensors.

    Raises:
        SnapshotError: the file is not a snapshot.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata()
            return int(header["round"]), bytes.fromhex(header["run"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SnapshotError(f"{path}: not a snapshot ({error})") from error


def _read(data: bytes, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise SnapshotError(f"{name}: damaged ({error})") from error
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    return tensors, header


def _seal(header: Mapping[str, str], state: Mapping[str, Tensor]) -> str:
    """Return a digest over round, run, the parameters' digest, and the optimizer's state."""
    fields = " ".join(header.get(key, "") for key in ("round", "run", "digest"))
    seal = xxhash.xxh3_128(fields.encode())
    for name in sorted(state):
        seal.update(f" {name} {state[name].dtype} {tuple(state[name].shape)} ".encode())
        seal.update(digest_of(state[name]))
    return seal.hexdigest()
