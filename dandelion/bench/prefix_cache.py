"""Queries of an encoder with few trained parameters: the frozen rest computed once or always."""

from collections.abc import Callable
from contextlib import nullcontext
from statistics import median

import torch
from torch import nn

from dandelion.bench.rows import BenchRow, alternate, on_threads
from shared.base.flat import flatten
from shared.directions import DIRECTIONS
from shared.estimation.activation_cache import FrozenPrefixCache
from shared.estimation.perturber import Perturber
from shared.estimation.two_point import two_point
from shared.randomness.streams import SHARED_SLOT, direction_keys
from shared.training.scopes import trainable

SCOPES = ("head", "reduced", "bias")
QUERIES, BATCH, LENGTH, EPS = 8, 16, 64, 1e-3


def prefix_cache(repeats: int = 7) -> list[BenchRow]:
    """Medians of seconds for q queries, and of their ratio to computing everything every time."""
    with on_threads():
        return [row for scope in SCOPES for row in _scope(scope, repeats)]


def _scope(scope: str, repeats: int) -> list[BenchRow]:
    times = alternate(ways(scope), repeats)
    plain, ours = times.values()
    ratio = median(mine / other for mine, other in zip(ours, plain, strict=True))
    what = f"scope {scope}, q = {QUERIES}, {BATCH}x{LENGTH} tokens"
    note = "to computing all every time"
    return [
        BenchRow(f"{name}, {what}", median(seconds), share, note)
        for (name, seconds), share in zip(times.items(), (1.0, ratio), strict=True)
    ]


def ways(scope: str) -> dict[str, Callable[[], object]]:
    """The queries of a step on an encoder of MiniLM's shape, with and without a cache."""
    module = encoder().eval()
    model = flatten(module, trainable(scope, module))
    perturber = Perturber(model, DIRECTIONS["rademacher"](model.layout))
    tokens = torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) * 7919 % 30000
    labels, cache = torch.arange(BATCH) % 2, FrozenPrefixCache(model)

    def loss(query: int) -> float:
        with torch.inference_mode():
            return float(module(tokens, labels=labels).loss)

    def queries(remember: bool) -> None:
        keys = direction_keys(1, 1, SHARED_SLOT, 0, QUERIES)
        with cache.reuse() if remember else nullcontext():
            two_point(loss, perturber, keys, EPS)

    return {
        "all every time": lambda: queries(False),
        "frozen parts once": lambda: queries(True),
    }


def encoder() -> nn.Module:
    """A classifier of the shape of MiniLM (22.7 M parameters), untrained."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    return BertForSequenceClassification(
        BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
    )
