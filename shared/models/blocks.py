"""The equal blocks of a transformer, and which parameters the last of them have."""

import re
from typing import Any

from torch import nn

from shared.base.errors import ConfigError
from shared.models.model import CLASSIFIER

BEFORE = re.compile(r"embed|(^|\.)(wte|wpe|project_in)\.")  # of input, by any usual name


def blocks_of(module: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of a module's blocks: its largest list of modules of one class.

    Raises:
        ConfigError: the module has no such list.
    """
    lists = [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, nn.ModuleList) and len({type(block) for block in part}) == 1
    ]
    if not lists:
        raise ConfigError(
            f"a list of equal blocks expected in {type(module).__name__}, as a transformer has it"
        )
    return max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))


def last_blocks(module: nn.Module, count: int) -> set[str]:
    """Names of the parameters of the last ``count`` blocks, and of what follows the blocks.

    What follows is the final norm, and an encoder's pooler and head. It is not the output matrix of
    a causal model: that may be its embedding too, and is large beside the few words that count.

    Raises:
        ConfigError: the module has no blocks, or not so many.
    """
    _, blocks = blocks_of(module)
    if not 1 <= count <= len(blocks):
        raise ConfigError(
            f"scope last:{count}: from 1 to {len(blocks)} blocks expected, as many as "
            f"{type(module).__name__} has"
        )
    last = {id(p) for block in blocks[len(blocks) - count :] for p in block.parameters()}
    other = {id(p) for p in blocks.parameters()} | _input_and_output(module)
    return {
        name
        for name, parameter in module.named_parameters()
        if id(parameter) in last or (id(parameter) not in other and not BEFORE.search(name))
    }


def _input_and_output(module: nn.Module) -> set[int]:
    """Ids of the embeddings' parameters, and of a causal model's output matrix."""
    parts: list[Any] = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    if not type(module).__name__.endswith(CLASSIFIER):
        outputs: Any = getattr(module, "get_output_embeddings", lambda: None)()
        parts += [outputs] if outputs is not None else []
    return {id(parameter) for part in parts for parameter in part.parameters()}
