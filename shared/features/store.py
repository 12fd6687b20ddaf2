"""Tensors that are kept per example of a run: in memory up to a limit, then in the data cache.

They are never stale: a store's name is a digest of everything that they depend on, and a key is a
digest of its example's tokens.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.base.files import cache_folder
from shared.features.tensor_folder import TensorFolder
from shared.replica.replica import digest_of

FORMAT = 2  # of what is kept; another one is another name
FOLDER = "features"  # of the data cache


@dataclass
class KeptTensors:
    """Float32 tensors of any shape by the key of their example, stored as ``dtype``.

    Memory takes what comes first. All are also appended to a file of the data cache, if
    ``disk_bytes`` is not 0: other processes read it, and so does a resumed run. Not for several
    threads at once.

    Attributes:
        name: by ``features_name``.
        memory_bytes: limit of what memory takes.
        disk_bytes: limit of all names in the data cache; the least recently used name is deleted
            as a whole, but none that is in use.
        dtype: float32, or bfloat16, which rounds to the nearest.
    """

    name: str
    memory_bytes: int
    disk_bytes: int
    dtype: torch.dtype
    memory_used: int = 0
    _memory: dict[bytes, Tensor] = field(default_factory=dict, repr=False)
    _folder: TensorFolder | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.disk_bytes:
            name = f"{self.name}-{str(self.dtype).removeprefix('torch.')}"
            self._folder = TensorFolder(cache_folder() / FOLDER, name, self.disk_bytes)

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """The indices of the keys that have no tensor here, nor in a file of any process."""
        absent = [at for at, key in enumerate(keys) if key not in self._memory]
        if self._folder is None or not absent:
            return absent
        if any(keys[at] not in self._folder for at in absent):
            self._folder.refresh()
        return [at for at in absent if keys[at] not in self._folder]

    def get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """The tensors of keys as float32 copies on the CPU; None for each that is not here."""
        absent = set(self.missing(keys))
        return [None if at in absent else self._read(key) for at, key in enumerate(keys)]

    def put(self, keys: Sequence[bytes], tensors: Sequence[Tensor]) -> None:
        """Keep a tensor for each key, as far as there is room; a key that has one keeps it."""
        rounded = [tensor.detach().to("cpu", self.dtype, copy=True) for tensor in tensors]
        for key, tensor in zip(keys, rounded, strict=True):
            self._remember(key, tensor)
        if self._folder is not None:
            self._folder.append(keys, rounded)

    def _read(self, key: bytes) -> Tensor | None:
        tensor = self._memory.get(key)
        if tensor is None and self._folder is not None:
            tensor = self._folder.read(key)
            if tensor is not None:
                self._remember(key, tensor)
        return None if tensor is None else tensor.to(torch.float32, copy=True)

    def _remember(self, key: bytes, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if key not in self._memory and self.memory_used + size <= self.memory_bytes:
            self._memory[key] = tensor
            self.memory_used += size


def example_key(row: NDArray[np.int64]) -> bytes:
    """16 bytes that name the tokens (T,) of an example; padding (-1) after its end is no part."""
    return example_keys(row[None])[0]


def example_keys(rows: NDArray[np.int64]) -> list[bytes]:
    """The keys of the examples of rows (B, T) of tokens, without their labels."""
    width = rows.shape[1]
    is_text = rows[:, ::-1] >= 0
    lengths = np.where(is_text.any(1), width - is_text.argmax(1), 0).tolist()
    plain = np.ascontiguousarray(rows, "<i8")
    return [
        xxhash.xxh3_128_digest(row[:length].tobytes())
        for row, length in zip(plain, lengths, strict=True)
    ]


def features_name(
    module: nn.Module, frozen: Collection[str], tokenizer: str, what: str, without: str = ""
) -> str:
    """The name of what a module's frozen part makes of examples: a digest of all it depends on.

    Args:
        module: its structure, its configuration and its buffers are covered.
        frozen: names of the parameters that it depends on; their bits and dtypes are covered.
        tokenizer: its identity.
        what: which output of the module it is.
        without: buffers of the sub-module of this name do not matter.
    """
    digest = xxhash.xxh3_128(f"{FORMAT}\0{tokenizer}\0{what}\0{_structure(module)}\0".encode())
    parameters = dict(module.named_parameters(remove_duplicate=False))
    others = {n: b for n, b in module.named_buffers() if not without or n.split(".")[0] != without}
    tensors = {name: parameters[name] for name in frozen} | others
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(digest_of(tensor.detach().contiguous()) if tensor.numel() else b"")
    return digest.hexdigest()


def _structure(module: nn.Module) -> str:
    """A module's layers, and the settings of its configuration, but not where it came from."""
    config: Any = getattr(module, "config", None)
    settings = dict(config.to_dict()) if hasattr(config, "to_dict") else {}
    settings.pop("_name_or_path", None)
    return f"{module}\0{sorted((key, repr(value)) for key, value in settings.items())}"
