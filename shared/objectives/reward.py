"""A user's reward: a function of a batch in an importable module, named ``module:function``.

    def reward(batch: Batch) -> Tensor:          # (B,): a number for each example, more is better
        right = batch.logits.argmax(1) == batch.labels
        return right.float() - 0.1 * batch.logits.std(1)

The module must be importable at the server, at every site, and where a ledger is verified. Its file
belongs to the base that they compare; what the module itself imports does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from inspect import getsourcefile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shared.base.errors import ConfigError
from shared.tasks.task import Task

EXPECTED = "module:function expected, a function of one batch in a module that can be imported"


@dataclass(frozen=True)
class Batch:
    """What an objective is computed from: a model at some parameters, and some examples.

    An example's number may depend on that example alone: several sites' examples may share a batch.
    """

    module: nn.Module  # may be called, or generate, in any way that changes nothing in it
    rows: Tensor  # (B, n) integers, as the task makes them
    task: Task

    @cached_property
    def logits(self) -> Tensor:
        """Logits of the classes (B, k), or of each next token (B, T, V); one forward pass."""
        return self.task.predict(self.module, self.rows)

    @cached_property
    def labels(self) -> Tensor:
        """Classes (B,), or next tokens (B, T) with -100 after each block's last."""
        return self.task.labels(self.rows)


def is_reward(objective: str) -> bool:
    """Whether the setting ``objective`` names a function, not one of ours."""
    return ":" in objective


@cache
def reward_of(name: str) -> Callable[[Batch], object]:
    """Import ``module:function``; what it gives is negated, since an objective descends.

    Raises:
        ConfigError: there is no such module or function.
    """
    function = _import(name)

    def negative(batch: Batch) -> object:
        reward = function(batch)
        return -reward if isinstance(reward, Tensor) else reward

    return negative


@cache
def reward_source(objective: str) -> bytes:
    """The file of a reward's module, as it was when first read; empty if the objective is none.

    Raises:
        ConfigError: as ``reward_of``, or the function has no source file.
    """
    if not is_reward(objective):
        return b""
    try:
        file = getsourcefile(_import(objective))
    except TypeError:
        file = None
    if file is None:
        raise ConfigError(f"objective {objective!r}: {EXPECTED}; this one has no source file")
    return Path(file).read_bytes()


def _import(name: str) -> Callable[[Batch], Any]:
    module, _, function = name.partition(":")
    try:
        value = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"objective {name!r}: {EXPECTED}; {error}") from error
    if not callable(value):
        raise ConfigError(f"objective {name!r}: {EXPECTED}, got {type(value).__name__}")
    result: Callable[[Batch], Any] = value
    return result
