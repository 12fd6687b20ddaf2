"""How much memory a model takes, from its shapes alone: no weight is read or made."""

from dataclasses import dataclass
from typing import Any

import torch

from shared.base.flat import TILE, Layout
from shared.estimation.perturber import COPIES_SHARE, SMALL_TILES, scratch_size
from shared.models.gpt2 import SHAPES, hollow
from shared.models.hub import build_without_weights
from shared.models.model import MODELS
from shared.models.packaged import PACKAGED

BYTES = {"float32": 4, "bfloat16": 2}  # of a parameter
MOMENTS = 2 * 4  # bytes of a parameter's means, which stay in float32
GRADIENT = 4  # bytes of a parameter's gradient while a step of Adam lasts
WORKING = {"float32": 0, "bfloat16": 4}  # bytes of a parameter while it is moved and then rounded


@dataclass(frozen=True)
class Footprint:
    """What a replica takes, in bytes, without the activations of a batch."""

    replica: int
    query: int  # on top of that, while one is measured with one thread, at most
    adam: int  # replica, moments and what a step adds


def footprint(layout: Layout, dtype: str) -> Footprint:
    """The memory of a replica that trains all of ``layout`` in ``dtype``."""
    each, size = BYTES[dtype], layout.size
    widest = max((p.shape[-1] for p in layout.tensors if len(p.shape) == 2), default=1)
    scratch = min(max(scratch_size(size, threads=1), widest), size)
    tiles = [-(-span.size // TILE) for span in layout.tensors]
    small = TILE * sum(count for count in tiles if count <= SMALL_TILES)
    copies = min(small, max(scratch, size // COPIES_SHARE)) if scratch < size else 0
    return Footprint(
        replica=each * size,
        query=each * (scratch + copies),
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
            span = str(PACKAGED[name].folder()) if name in PACKAGED else name
            module = build_without_weights(name, span)
    return Layout.of((n, tuple(p.shape)) for n, p in module.named_parameters()), module
