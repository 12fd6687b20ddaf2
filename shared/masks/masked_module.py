"""A module of which only the numbers at a mask's addresses are trained.

Each parameter that has such addresses becomes a function of two: its frozen numbers, and a vector
of the trained ones, which stand in their place in every forward pass. So the flat vector of a run
has as many numbers as the mask, and directions, updates, snapshots and digests are of these alone.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from shared.base.errors import ConfigError
from shared.masks.mask import Mask, Shapes
from shared.models.model import LanguageModel

VALUES = "values"
INSIDE, ORIGINAL = "parametrizations", "original"  # torch's names: of the part, of what is frozen


class SparseValues(nn.Module):
    """Numbers that stand at some addresses of a frozen parameter."""

    def __init__(self, original: Tensor, addresses: Tensor) -> None:
        super().__init__()
        self.register_buffer("addresses", addresses.to(original.device))
        start = original.detach().flatten()[addresses.to(original.device)]
        self.values = nn.Parameter(start.clone(), requires_grad=True)

    def forward(self, original: Tensor) -> Tensor:
        """The parameter with the trained numbers in their places."""
        places: Any = self.addresses
        return original.flatten().index_copy(0, places, self.values).view_as(original)


def shapes_of(module: nn.Module) -> Shapes:
    """Shapes of a module's parameters, by name; one that is tied is there once."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def mask_(model: LanguageModel, text: str) -> LanguageModel:
    """Let only the addresses of the setting ``mask`` be trained; all else is frozen.

    Returns:
        The model, which is saved with its numbers in their places: no reader needs the mask.

    Raises:
        ConfigError: the text is no mask of this model.
    """
    module: nn.Module = model.module
    mask = Mask.decode(text, shapes_of(module))
    named = dict(module.named_parameters())
    owners = _owners(module)
    for name, addresses in mask.addresses.items():
        values = SparseValues(named[name], addresses)
        for part, own in owners[id(named[name])]:
            _put_in_place_(part, own, values)
    module.eval()
    return replace(model, state=fill_in)


def _owners(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """The modules that have each parameter, by its ``id``, and its name there."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((part, name))
    return owners


def _put_in_place_(part: nn.Module, name: str, values: SparseValues) -> None:
    try:
        parametrize.register_parametrization(part, name, values)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ConfigError(
            f"scope mask: parameter {name!r} of {type(part).__name__} cannot be masked ({error}); "
            "leave it out by mask:<share>:regex:<pattern>"
        ) from error


def names_of_values(module: nn.Module) -> set[str]:
    """Names of the trained numbers of a module that has a mask.

    Raises:
        ConfigError: it has none.
    """
    names = {
        f"{path}.{VALUES}"
        for path, part in module.named_modules()
        if isinstance(part, SparseValues)
    }
    if not names:
        raise ConfigError(
            f"scope mask: a module with a mask expected, got {type(module).__name__} without one"
        )
    return names


def fill_in(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module under its own names, with the trained numbers in their places."""
    state, parts = dict[str, Tensor](), dict(module.named_modules())
    whole: dict[int, Tensor] = {}  # by the address of the frozen numbers: tied ones stay tied
    with torch.no_grad():
        for key, value in module.state_dict().items():
            path, inside, rest = key.partition(f"{INSIDE}.")
            name, _, what = rest.partition(".")
            if not inside:
                state[key] = value
            elif what == ORIGINAL:
                part = parts[path.rstrip(".")]
                if value.data_ptr() not in whole:
                    whole[value.data_ptr()] = getattr(part, name).detach()
                state[f"{path}{name}"] = whole[value.data_ptr()]
    return state
