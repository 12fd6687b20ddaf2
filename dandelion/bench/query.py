"""One query (two evaluations at θ ± εz) against two plain forwards and the peers' ways.

A plain forward is of the model as a user has it, which is transformers' own class. Ours computes
the same bits in fewer calls, so the ratio to two plain forwards of it stands beside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from dandelion.bench.rows import BenchRow, alternate, on_threads
from shared.base.flat import FlatModel, flatten
from shared.captured.passes import CapturedPasses
from shared.directions import DIRECTIONS
from shared.directions.low_precision import lower_precision
from shared.estimation.perturber import Perturber
from shared.models.gpt2 import SHAPES, build
from shared.models.model import to_transformers
from shared.models.next_token import loss_tensor, losses_of, next_token_loss, next_tokens
from shared.randomness.streams import Key

EPS = 1e-3
PLAIN, QUERY = "two plain forwards", "query"
LIGHT = "two plain forwards of our module"
CAPTURED = "two plain forwards as CUDA graphs"
IN_PLACE, CLONE = "in-place Gaussian (MeZO)", "clone and restore (the original)"


@dataclass(frozen=True)
class QueryCase:
    """A model size and a batch of it."""

    size: str
    batch: int
    length: int = 128


CASES = (QueryCase("20M", 4), QueryCase("200M", 1))


def query(repeats: int = 7, cases: tuple[QueryCase, ...] = CASES) -> list[BenchRow]:
    """Medians of seconds, and of their ratio to two plain forwards in the same turn."""
    with on_threads():
        return [row for case in cases for row in _case(case, repeats)]


def _case(case: QueryCase, repeats: int) -> list[BenchRow]:
    model = flatten(build(case.size, seed=1).module)
    numbers = torch.arange(case.batch * case.length).view(case.batch, -1)
    blocks = numbers * 7919 % SHAPES[case.size].vocabulary
    times = alternate(ways(model, blocks), repeats)
    what = f"{model.layout.parameters / 1e6:.1f} M, {case.batch}x{case.length} tokens"
    pairs = [*((name, PLAIN) for name in times), (QUERY, LIGHT)]
    return [
        BenchRow(
            f"{name}, {what}", median(times[name]), _ratio(times[name], times[base]), f"to {base}"
        )
        for name, base in pairs
    ]


def ways(model: FlatModel, blocks: Tensor) -> dict[str, Callable[[], object]]:
    """Two evaluations each: plain, ours, MeZO's in-place loop, the original's clone and restore.

    The plain ones are of what the module is in transformers, and of the module itself.

    On a card also plain ones that are captured as ours are: the best that a plain pass can do.
    """
    signs = lower_precision(DIRECTIONS["rademacher"](model.layout), model.flat.dtype)
    perturber = Perturber(model, signs)
    passes = CapturedPasses.on(model.flat.device, allowed=perturber.is_capturable)

    def loss() -> float:
        return next_token_loss(model.module, blocks)

    def start() -> float:
        with torch.inference_mode():
            return float(passes.run(perturber.is_active, compute, blocks))

    def compute(rows: Tensor) -> Tensor:
        return loss_tensor(model.module, rows)

    def ours() -> None:
        for scale in (EPS, -EPS):
            with perturber.at(Key(1, 1, 0, 0), scale):
                start()

    theirs = to_transformers(model.module)
    calls: dict[str, Callable[[], object]] = {
        PLAIN: lambda: (plain_loss(theirs, blocks), plain_loss(theirs, blocks)),
        LIGHT: lambda: (loss(), loss()),
        QUERY: ours,
    }
    if passes.is_possible:
        calls[CAPTURED] = lambda: (start(), start())
    calls[IN_PLACE] = lambda: in_place(model.module, loss)
    calls[CLONE] = lambda: _clone(model.module, loss)
    return calls


def plain_loss(module: Any, blocks: Tensor) -> float:  # noqa: ANN401
    """The mean loss of the next tokens of blocks (B, T), by a forward of transformers' own class.

    Cross-entropy is computed as everywhere here, so that forwards alone are compared.
    """
    with torch.inference_mode():
        scores = module(blocks, use_cache=False).logits.flatten(0, 1)
        losses = losses_of(scores, next_tokens(blocks).view(-1))
    return float(losses.sum(dtype=torch.float64) / (blocks.numel() - len(blocks)))


def in_place(module: nn.Module, loss: Callable[[], float]) -> None:
    """MeZO (Malladi et al. 2023): +ε, −2ε, +ε over all tensors, reseeded for each sweep."""
    for number, scale in enumerate((1, -2, 1)):
        torch.manual_seed(7)
        for parameter in module.parameters():
            z = parameter.data.new_empty(parameter.shape).normal_()
            parameter.data = parameter.data + scale * EPS * z
        if number < 2:
            loss()


def _clone(module: nn.Module, loss: Callable[[], float]) -> None:
    """The original client: a copy of all tensors, each sign from the copy, then the copy back."""
    saved = [parameter.data.clone() for parameter in module.parameters()]
    for sign in (1, -1):
        torch.manual_seed(7)
        for parameter, own in zip(module.parameters(), saved, strict=True):
            parameter.data = own + sign * EPS * torch.randn_like(own)
        loss()
    for parameter, own in zip(module.parameters(), saved, strict=True):
        parameter.data = own


def _ratio(seconds: list[float], plain: list[float]) -> float:
    return median(mine / other for mine, other in zip(seconds, plain, strict=True))
