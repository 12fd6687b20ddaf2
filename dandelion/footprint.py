"""How much memory a model takes, from its shapes alone: no weight is read or made."""

from dataclasses import dataclass
from typing import Any

import torch

from shared.flat import Layout
from shared.models import MODELS
from shared.models.gpt2 import SHAPES, hollow
from shared.models.hub import shapes
from shared.models.packaged import PACKAGED
from shared.perturb import SCRATCH

BYTES = {"float32": 4, "bfloat16": 2}  # of a parameter
MOMENTS = 2 * 4  # bytes of a parameter's means, which stay in float32
GRADIENT = 4  # bytes of a parameter's gradient while a step of Adam lasts
WORKING = {"float32": 0, "bfloat16": 4}  # bytes of a parameter while it is moved and then rounded


@dataclass(frozen=True)
class Footprint:
    """What a replica takes, in bytes, without the activations of a batch."""

    replica: int
    query: int  # on top of that, while one is measured
    adam: int  # replica, moments and what a step adds


def footprint(layout: Layout, dtype: str) -> Footprint:
    """The memory of a replica that trains all of ``layout`` in ``dtype``."""
    each, size = BYTES[dtype], layout.size
    widest = max((p.shape[-1] for p in layout.places if len(p.shape) == 2), default=1)
    whole = max((p.size for p in layout.places if len(p.shape) != 2), default=0)
    scratch = min(max(SCRATCH, widest), size)
    return Footprint(
        replica=each * size,
        query=each * (scratch + whole),
        adam=(each + MOMENTS + GRADIENT + WORKING[dtype]) * size,
    )


def described(name: str) -> tuple[Layout, Any]:
    """The parameters of a model, and the module without weights.

    Raises:
        DataError: the model cannot be had here.
    """
    with torch.device("meta"):
        if name in MODELS.names():
            module: Any = hollow(SHAPES[name])
        else:
            place = str(PACKAGED[name].folder()) if name in PACKAGED else name
            module = shapes(name, place)
    return Layout.of((n, tuple(p.shape)) for n, p in module.named_parameters()), module
