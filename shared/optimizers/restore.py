"""An optimizer takes over a snapshot's tensors, all of them or none."""

from collections.abc import Mapping

from torch import Tensor

from shared.base.errors import SnapshotError


def restore_(live: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy ``saved`` into the tensors of ``live``; nothing is written unless everything fits.

    Raises:
        SnapshotError: the names, or the shape or dtype under one name, are not those of ``live``.
    """
    if live.keys() != saved.keys():
        raise SnapshotError(f"optimizer state {sorted(live)} expected, got {sorted(saved)}")
    for name, tensor in live.items():
        expected, got = _kind(tensor), _kind(saved[name])
        if expected != got:
            raise SnapshotError(f"optimizer state {name!r} of {expected} expected, got {got}")
    for name, tensor in live.items():
        tensor.copy_(saved[name])


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
