"""The server's model of a run in somebody else's app: from arrays and back to arrays."""

import copy
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from shared.apps.app_run import AppRun, settings_to_send
from shared.apps.flat_module import FlatModule
from shared.base.errors import ConfigError
from shared.config.schema import Config
from shared.replica.snapshot import encode_snapshot


@dataclass
class GlobalModel:
    """A replica of a user's module, and what clients are sent of it.

    Invariant: ``flat.replica`` is at the last round that was committed.
    """

    flat: FlatModule
    about: AppRun
    name: bytes = field(default_factory=lambda: secrets.token_bytes(16))  # of the run
    _snapshot: tuple[int, bytes] = (-1, b"")  # the round and its snapshot
    _arrays: ArrayRecord | None = None  # those that were handed out last

    @classmethod
    def of(
        cls, module: nn.Module, arrays: ArrayRecord, config: Config, batches: int, weight_key: str
    ) -> "GlobalModel":
        """A copy of a module with the values of arrays, at round 0.

        Args:
            module: stays as it is.
            arrays: of the names and shapes of ``module.state_dict()``.
            config: of the run.
            batches: measured by a client in a round; 0: all.
            weight_key: of the metric by which clients are weighted.

        Raises:
            ConfigError: the arrays are not those of the module, or the module cannot be trained.
        """
        own = copy.deepcopy(module)
        load_arrays_(own, arrays)
        flat = FlatModule.of(own, config)
        about = AppRun(
            settings=settings_to_send(config),
            batches=batches,
            weight_key=weight_key,
            initial=flat.replica.digest().hex(),
            frozen=flat.digest_of_frozen().hex(),
        )
        return cls(flat, about)

    def snapshot(self) -> bytes:
        """Trained parameters and optimizer state of the replica's round."""
        replica = self.flat.replica
        if self._snapshot[0] != replica.round:
            self._snapshot = replica.round, encode_snapshot(replica, self.name)
        return self._snapshot[1]

    @property
    def is_padded(self) -> bool:
        """Whether more than a tenth of the vector of parameters is padding between tensors."""
        layout = self.flat.replica.model.layout
        return layout.size > 1.1 * layout.parameters

    def arrays(self) -> ArrayRecord:
        """The module's state as arrays, by the names of its ``state_dict``."""
        self._arrays = ArrayRecord(dict(self.flat.module.state_dict()))
        return self._arrays

    def check_same(self, arrays: ArrayRecord) -> None:
        """Refuse arrays that are not those of this model.

        Raises:
            ConfigError: somebody changed them since the strategy returned them; clients follow
                entries, so what the entries do not say would never reach them.
        """
        if arrays is self._arrays:
            return
        given, own = arrays.to_torch_state_dict(), self.flat.module.state_dict()
        for name, tensor in own.items():
            if name not in given or not _equal(given[name], tensor):
                raise ConfigError(
                    f"arrays of round {self.flat.replica.round}: {name!r} is not as the strategy "
                    "returned it; clients follow the entries of rounds, so a change of the arrays "
                    "between rounds would never reach them"
                )


def load_arrays_(module: nn.Module, arrays: ArrayRecord) -> None:
    """Copy arrays into a module.

    Raises:
        ConfigError: a name is missing or too many, a shape or dtype differs, or a number is not
            finite.
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(f"model: a torch.nn.Module expected, got {type(module).__name__}")
    given, own = _tensors_of(arrays), module.state_dict()
    if differing := sorted(own.keys() ^ given.keys()):
        name = differing[0]
        where = "missing" if name in own else "not in the model"
        raise ConfigError(
            f"initial arrays: those of {type(module).__name__}().state_dict() expected; "
            f"{name!r} is {where} ({len(own)} expected, got {len(given)})"
        )
    for name, tensor in own.items():
        expected, got = _kind(tensor), _kind(given[name])
        if expected != got:
            raise ConfigError(f"initial arrays: {name!r} of {expected} expected, got {got}")
        if given[name].is_floating_point() and not bool(torch.isfinite(given[name]).all()):
            raise ConfigError(f"initial arrays: {name!r} has numbers that are not finite")
    module.load_state_dict(given)


def _tensors_of(arrays: ArrayRecord) -> Mapping[str, Tensor]:
    if not isinstance(arrays, ArrayRecord):
        raise ConfigError(f"initial arrays: an ArrayRecord expected, got {type(arrays).__name__}")
    return arrays.to_torch_state_dict()


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _equal(one: Tensor, other: Tensor) -> bool:
    return _kind(one) == _kind(other) and torch.equal(one.cpu(), other.cpu())
