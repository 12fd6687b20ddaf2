"""Parameters and optimizer state of one round as bytes, to start a replay from."""

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
    """A safetensors file: the flat vector, the optimizer's tensors, and what binds them."""
    state = {name: value.detach().cpu() for name, value in replica.state().items()}
    head = {"round": str(replica.round), "run": run.hex(), "digest": replica.digest().hex()}
    tensors = {FLAT: replica.model.flat.detach().cpu()}
    tensors |= {STATE + name: value for name, value in state.items()}
    return save(tensors, head | {"seal": _seal(head, state)})


def load_snapshot_(replica: Replica, data: bytes, run: bytes, name: str = "snapshot") -> None:
    """Put ``replica`` where the snapshot is; it is untouched where the snapshot cannot be used.

    Raises:
        SnapshotError: damaged, of another run, or of another model or optimizer; says ``name``.
    """
    tensors, head = _read(data, name)
    if head.get("run") != run.hex():
        raise SnapshotError(
            f"{name}: a snapshot of run {run.hex()} expected, got {head.get('run')}"
        )
    flat = tensors.pop(FLAT, torch.empty(0))
    if flat.shape != replica.model.flat.shape or flat.dtype != replica.model.flat.dtype:
        raise SnapshotError(
            f"{name}: {tuple(replica.model.flat.shape)} {replica.model.flat.dtype} expected, "
            f"got {tuple(flat.shape)} {flat.dtype}"
        )
    state = {key.removeprefix(STATE): value for key, value in tensors.items()}
    if head.get("digest") != digest_of(flat).hex() or head.get("seal") != _seal(head, state):
        raise SnapshotError(f"{name}: damaged, its digests do not fit its tensors")
    try:
        replica.load_state(state)  # all of it or nothing
    except SnapshotError as error:
        raise SnapshotError(f"{name}: {error}") from error
    replica.model.flat.copy_(flat)
    replica.moved(int(head["round"]))


def snapshot_position(path: Path) -> tuple[int, bytes]:
    """Round and run of a snapshot file, from its header alone, which may not be true.

    Raises:
        SnapshotError: the file is not a snapshot.
    """
    try:
        with safe_open(path, "pt") as file:
            head = file.metadata()
            return int(head["round"]), bytes.fromhex(head["run"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SnapshotError(f"{path}: not a snapshot ({error})") from error


def _read(data: bytes, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise SnapshotError(f"{name}: damaged ({error})") from error
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    return tensors, head


def _seal(head: Mapping[str, str], state: Mapping[str, Tensor]) -> str:
    """A digest that binds the digest of the parameters, what they are of, and the state."""
    said = " ".join(head.get(key, "") for key in ("round", "run", "digest"))
    found = xxhash.xxh3_128(said.encode())
    for name in sorted(state):
        found.update(f" {name} {state[name].dtype} {tuple(state[name].shape)} ".encode())
        found.update(digest_of(state[name]))
    return found.hexdigest()
