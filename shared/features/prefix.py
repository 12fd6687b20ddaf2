"""The frozen prefix of a model: the blocks before the first trained one, and what these depend on.

Which modules come before and which after is seen in one forward pass, not guessed from names.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from shared.base.errors import ConfigError
from shared.base.flat import FlatModel
from shared.models.blocks import blocks_of


class NoPrefixError(Exception):
    """A model whose passes cannot begin after frozen blocks; says why."""


@dataclass(frozen=True)
class FrozenPrefix:
    """The first blocks of a model, none of which has a trained parameter."""

    blocks: tuple[nn.Module, ...]
    total: int  # blocks of the model
    frozen: frozenset[str]  # names of all parameters that the blocks' output may depend on


def count_frozen_blocks(model: FlatModel) -> int:
    """How many blocks come before the first with a trained parameter; 0 without blocks too."""
    try:
        _, blocks = blocks_of(model.module)
    except ConfigError:
        return 0
    trained = set(model.addresses)
    for number, block in enumerate(blocks):
        if trained & _ids(block):
            return number
    return len(blocks)


def find_prefix(model: FlatModel, run: Callable[[], object]) -> FrozenPrefix:
    """The frozen prefix of a model; ``run`` makes one forward pass of it.

    Raises:
        NoPrefixError: no block is frozen, or something trained is used before the last of these.
    """
    _, blocks = blocks_of(model.module)
    count = count_frozen_blocks(model)
    if not count:
        raise NoPrefixError("the first block is trained")
    before, after = _see_order(model.module, run, blocks, count)
    behind = {id(p) for block in blocks[count:] for p in block.parameters()} | after
    behind -= before | {id(p) for block in blocks[:count] for p in block.parameters()}
    named = dict(model.module.named_parameters())
    if early := [name for name, p in named.items() if id(p) in set(model.addresses) - behind]:
        raise NoPrefixError(f"{early[0]!r} is trained and may be used before the blocks")
    frozen = frozenset(name for name, parameter in named.items() if id(parameter) not in behind)
    return FrozenPrefix(tuple(blocks[:count]), len(blocks), frozen)


def _see_order(
    module: nn.Module, run: Callable[[], object], blocks: nn.ModuleList, count: int
) -> tuple[set[int], set[int]]:
    """Ids of the parameters of modules called until the last frozen block, and of those after."""
    calls: list[nn.Module] = []

    def note(part: nn.Module, _: object) -> None:
        calls.append(part)

    hooks = [part.register_forward_pre_hook(note) for part in module.modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    inside = {id(part) for block in blocks[:count] for part in block.modules()}
    ends = [at for at, part in enumerate(calls) if id(part) in inside]
    if not ends:
        raise NoPrefixError("its blocks are not called as modules")
    until = ends[-1] + 1
    return tuple(
        {id(p) for part in some for p in part.parameters(recurse=False)}
        for some in (calls[:until], calls[until:])
    )  # type: ignore[return-value]


def _ids(module: nn.Module) -> set[int]:
    return {id(parameter) for parameter in module.parameters()}
