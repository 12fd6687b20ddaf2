"""Which parameters a run trains: all, the last layers, adapters, or those of a pattern.

Whatever is frozen is the same at every site, since the digest of the untrained model covers it too.
"""

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from shared.config import Config
from shared.errors import ConfigError

BLOCK = re.compile(r"^(.*)\.(\d+)\.(.+)$")  # a parameter of one of several equal blocks
MLP = re.compile(r"(^|\.)mlp\.")
MLP_NORM = ("ln_2.", "post_attention_layernorm.")  # as GPT-2 and Llama name what comes before it


def trainable(config: Config, module: nn.Module) -> Callable[[str], bool]:
    """Say of a parameter's name whether ``scope`` trains it.

    Raises:
        ConfigError: the pattern is not one, or the module has no blocks whose last one to train.
    """
    if config.scope == "full":
        return lambda name: True
    if config.scope == "lora":
        return lambda name: ".lora_" in name
    if config.scope == "reduced":
        return reduced(module).__contains__
    try:
        pattern = re.compile(config.scope.removeprefix("regex:"))
    except re.error as error:
        raise ConfigError(f"scope {config.scope!r}: {error}") from error
    return lambda name: pattern.search(name) is not None


def reduced(module: nn.Module) -> set[str]:
    """Names of the last block's MLP, of the norm before it, and of the head.

    A head that shares its weights with the embedding brings that along: they are one tensor.

    Raises:
        ConfigError: none of the module's blocks has an MLP.
    """
    names = [name for name, _ in module.named_parameters()]
    blocks = [found.groups() for name in names if (found := BLOCK.match(name))]
    last = max((int(number) for _, number, _ in blocks), default=-1)
    chosen = {
        f"{stem}.{number}.{rest}"
        for stem, number, rest in blocks
        if int(number) == last and (MLP.search(rest) or rest.startswith(MLP_NORM))
    }
    if not chosen:
        raise ConfigError(
            f"scope reduced: blocks with an 'mlp' expected in {type(module).__name__}; use regex:…"
        )
    any_module: Any = module
    head = {id(parameter) for parameter in any_module.get_output_embeddings().parameters()}
    return chosen | {name for name, p in module.named_parameters() if id(p) in head}
