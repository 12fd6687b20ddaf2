"""Any ``nn.Module`` as a replica: what of it is trained, what stays as it is, and digests of both.

Parameters with ``requires_grad`` are trained. All others, and all buffers, stay as they were at
round 0. So a batch normalisation uses the statistics that the initial arrays give it, in training
as in evaluation: a module is always in ``eval`` mode, which also switches dropout off. Layers that
need no statistics of a batch (``GroupNorm``, ``LayerNorm``) lose nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor, nn

from shared.base.errors import ConfigError, SnapshotError
from shared.base.flat import flatten
from shared.config.schema import Config
from shared.replica.replica import Replica, digest_of

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
BuildModule = Callable[[], nn.Module]


@dataclass(frozen=True)
class FlatModule:
    """A module whose trained parameters are those of a replica.

    Invariant: the tensors of ``frozen`` have the values of round 0; nobody writes them.
    """

    module: nn.Module
    replica: Replica
    frozen: Mapping[str, Tensor]  # live, by name: untrained parameters and buffers

    @classmethod
    def of(cls, module: nn.Module, config: Config) -> "FlatModule":
        """Put a module in ``eval`` mode, move its trained parameters into one vector; round 0.

        Raises:
            ConfigError: no module, nothing to train, parameters of two dtypes or devices, or a
                part that cannot be flattened (``shared.base.flattenable``).
        """
        dtype_of(module)
        chosen = {name for name, each in module.named_parameters() if each.requires_grad}
        flat = flatten(module.eval(), chosen.__contains__)
        spans = {span.name for span in flat.layout.tensors}
        frozen = {n: p.detach() for n, p in module.named_parameters() if n not in spans}
        return cls(module, Replica.of(flat, config), frozen | dict(module.named_buffers()))

    def digest_of_frozen(self) -> bytes:
        """16 bytes over the names and shapes that are trained, and over all other tensors' bits."""
        digest = xxhash.xxh3_128()
        for span in self.replica.model.layout.tensors:
            digest.update(f"{span.name} {span.shape}\n".encode())
        for name in sorted(self.frozen):
            tensor = self.frozen[name]
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(digest_of(tensor.contiguous()))
        return digest.digest()

    def load_frozen_(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the values of the untrained tensors.

        Raises:
            SnapshotError: names, shapes or dtypes are those of another module; nothing is copied.
        """
        mine, theirs = _kinds(self.frozen), _kinds(tensors)
        if mine != theirs:
            differing = sorted(
                n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n)
            )
            name = differing[0]
            raise SnapshotError(
                f"untrained tensor {name!r}: {mine.get(name, 'none')} expected, "
                f"got {theirs.get(name, 'none')}"
            )
        for name, tensor in self.frozen.items():
            tensor.copy_(tensors[name])

    def versions(self) -> dict[str, int]:
        """How often each untrained tensor was written, by name."""
        return {name: tensor._version for name, tensor in self.frozen.items()}

    def check_unchanged(self, digest: bytes, versions: Mapping[str, int], what: str) -> None:
        """Compare the module with what it was before a function of the user ran.

        Args:
            digest: of the trained parameters before.
            versions: ``versions()`` before.
            what: the function.

        Raises:
            ConfigError: the function wrote parameters or buffers, or left ``eval`` mode.
        """
        if written := [name for name, count in self.versions().items() if versions[name] != count]:
            raise ConfigError(
                f"{what} wrote the untrained tensor {written[0]!r}, which must stay as it is: "
                "leave the module in the eval mode in which it is handed over"
            )
        if any(part.training for part in self.module.modules()):
            raise ConfigError(
                f"{what} left the module in train mode: dropout and statistics of a batch would "
                "differ between two evaluations; call eval() or leave the mode alone"
            )
        if digest_of(self.replica.model.flat) != digest:
            raise ConfigError(
                f"{what} wrote the trained parameters: it must only read them, all steps are "
                "taken from the entries of rounds"
            )


def dtype_of(module: nn.Module) -> str:
    """The setting ``dtype`` of a module: that of the parameters to be trained.

    Raises:
        ConfigError: this is no module, it trains nothing, or in a dtype that no replica has.
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(f"model: a torch.nn.Module expected, got {type(module).__name__}")
    dtypes = {each.dtype for each in module.parameters() if each.requires_grad and each.numel()}
    if len(dtypes) != 1 or not dtypes <= DTYPES.keys():
        names = ", ".join(sorted(str(each) for each in dtypes)) or "none that has requires_grad"
        raise ConfigError(
            f"model: trained parameters of one dtype, {' or '.join(DTYPES.values())}, expected; "
            f"got {names}"
        )
    return DTYPES[dtypes.pop()]


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{each.dtype} {tuple(each.shape)}" for name, each in tensors.items()}
