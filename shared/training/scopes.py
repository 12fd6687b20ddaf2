"""Scopes: a run trains all parameters, last blocks, biases, adapters, a head, or what a mask says.

Frozen parameters are the same at every site, since the digest of the untrained model covers them.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from shared.base.errors import ConfigError
from shared.config.scope_names import LAST_SCOPE, MASK_SCOPE, last_of
from shared.features.readout import BIAS, WEIGHT
from shared.masks.masked_module import names_of_values
from shared.models.blocks import last_blocks
from shared.models.model import CLASSIFIER, READOUT

BLOCK = re.compile(r"^(.*)\.(\d+)\.(.+)$")  # a parameter of one of several equal blocks
MLP = re.compile(r"(^|\.)mlp\.|^intermediate\.|^output\.")  # the latter two: BERT's, with its norm
MLP_NORM = ("ln_2.", "post_attention_layernorm.")  # before the MLP, in GPT-2 and in Llama
BIASES = re.compile(r"bias$|norm|(^|\.)ln_", re.IGNORECASE)  # with norms, by any usual name
POOLER = re.compile(r"(^|\.)pooler\.")  # between an encoder and its head


def trainable(scope: str, module: nn.Module) -> Callable[[str], bool]:
    """Return whether the setting ``scope`` trains a parameter, as a function of its name.

    Raises:
        ConfigError: the pattern is none, or the module has no such part.
    """
    if scope == "full":
        return lambda name: True
    if scope in PARTS:
        return PARTS[scope](module).__contains__
    if scope.startswith(LAST_SCOPE):
        return last(module, *last_of(scope)).__contains__
    if scope.startswith(MASK_SCOPE):
        return names_of_values(module).__contains__
    try:
        pattern = re.compile(scope.removeprefix("regex:"))
    except re.error as error:
        raise ConfigError(f"scope {scope!r}: {error}") from error
    return lambda name: pattern.search(name) is not None


def readout(module: nn.Module) -> set[str]:
    """Names of the parameters of the module's readout.

    Raises:
        ConfigError: it has none.
    """
    if not hasattr(module, READOUT):
        raise ConfigError(
            "scopes words and prior: a causal model of transformers and task classification "
            f"expected, got {type(module).__name__} without a readout"
        )
    return {WEIGHT, BIAS}


def prior(module: nn.Module) -> set[str]:
    """The name of the readout's bias: one number for each class.

    Raises:
        ConfigError: the module has no readout.
    """
    return readout(module) - {WEIGHT}


def adapters(module: nn.Module) -> set[str]:
    """Names of the parameters of LoRA adapters, and of a classifier's head."""
    whole = head(module) if type(module).__name__.endswith(CLASSIFIER) else set[str]()
    return whole | {name for name, _ in module.named_parameters() if ".lora_" in name}


def head(module: nn.Module) -> set[str]:
    """Names of the parameters of an encoder's head, and of the pooler that feeds it.

    The head of a causal language model is its output matrix, which may be its embedding too. A
    readout, if there is one, is what gives the classes' logits: then it is the head.

    Raises:
        ConfigError: the module has no head.
    """
    any_module: Any = module
    if hasattr(module, READOUT):
        return readout(module)
    if not type(module).__name__.endswith(CLASSIFIER):
        return _output_matrix(module)
    body = f"{any_module.base_model_prefix}."
    names = [name for name, _ in module.named_parameters()]
    chosen = {name for name in names if not name.startswith(body) or POOLER.search(name)}
    if not chosen:
        raise ConfigError(f"scope head: {type(module).__name__} has no parameter outside {body!r}")
    return {name for name in chosen if ".lora_" not in name}


def _output_matrix(module: nn.Module) -> set[str]:
    find: Any = getattr(module, "get_output_embeddings", lambda: None)
    layer = find()
    if layer is None:
        raise ConfigError(
            "scope head: a PreTrainedModel of transformers with an output layer expected, "
            f"got {type(module).__name__}"
        )
    outputs = {id(parameter) for parameter in layer.parameters()}
    return {name for name, parameter in module.named_parameters() if id(parameter) in outputs}


def biases(module: nn.Module) -> set[str]:
    """Names of biases, of norms, and of a classifier's output: BitFit.

    Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199. They are some thousandths of the
    parameters, so a zeroth-order estimate needs few directions.

    Raises:
        ConfigError: the module has none.
    """
    names = [name for name, _ in module.named_parameters()]
    chosen = {name for name in names if BIASES.search(name)}
    if type(module).__name__.endswith(CLASSIFIER):
        chosen |= {name for name in head(module) if not POOLER.search(name)}
    if not chosen:
        raise ConfigError(f"scope bias: {type(module).__name__} has neither biases nor norms")
    return chosen


def last(module: nn.Module, count: int, few: bool) -> set[str]:
    """Names of the parameters of the last ``count`` blocks and of what follows them.

    With ``few`` only biases and norms there, and a classifier's output.

    Raises:
        ConfigError: the module has not so many blocks, or no biases or norms there.
    """
    whole = last_blocks(module, count)
    if not few:
        return whole
    if not (chosen := whole & biases(module)):
        raise ConfigError(f"scope last:{count}:bias: neither biases nor norms there")
    return chosen


def last_block(module: nn.Module) -> set[str]:
    """Names of the last block's MLP, of its norm, and of the head.

    A head that shares its weights with the embedding includes it: they are one tensor.

    Raises:
        ConfigError: none of the module's blocks has an MLP.
    """
    names = [name for name, _ in module.named_parameters()]
    blocks = [match.groups() for name in names if (match := BLOCK.match(name))]
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
    return chosen | head(module)


PARTS: Mapping[str, Callable[[nn.Module], set[str]]] = {
    "lora": adapters,
    "head": head,
    "bias": biases,
    "reduced": last_block,
    "words": readout,
    "prior": prior,
}
