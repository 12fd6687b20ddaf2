"""Evaluations of a model whose first part is frozen: that part computed once, or always."""

from collections.abc import Callable
from contextlib import nullcontext
from statistics import median

import torch
from torch import nn

from dandelion.bench.rows import BenchRow, alternate, on_threads
from shared.base.flat import flatten
from shared.config.run_sections import RunSettings
from shared.directions import DIRECTIONS
from shared.estimation.activation_cache import FrozenPrefixCache
from shared.estimation.perturber import Perturber
from shared.estimation.two_point import two_point
from shared.features.cut import KeptPrefix
from shared.randomness.streams import SHARED_SLOT, direction_keys
from shared.tasks.classification import Classification
from shared.tasks.verbaliser import word_logits
from shared.training.scopes import trainable

SCOPES = ("head", "reduced", "bias")
QUERIES, BATCH, LENGTH, EPS = 8, 16, 64, 1e-3
LAST, SHORTEST = 2, 24  # blocks that are trained, and tokens of the shortest text


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


def measure_kept_prefix(repeats: int = 5) -> list[BenchRow]:
    """Medians of seconds to evaluate a batch with the last blocks trained, and of their ratio.

    Activations at the cut were kept before: each example has run through the model once.
    """
    with on_threads():
        module = causal().eval()
        model, rows = flatten(module, trainable(f"last:{LAST}", module)), texts()
        task = Classification(2, lambda text, most: rows[0].numpy(), word_logits((11, 12)))
        kept = KeptPrefix(model, task.each, True, "", RunSettings(keep_disk=0))

        def evaluate(begins: bool) -> None:
            with torch.inference_mode(), kept.at(rows) if begins else nullcontext():
                task.outcome(module, rows)

        kept.prepare(rows)
        rivals: dict[str, Callable[[], object]] = {
            "all blocks": lambda: evaluate(False),
            "from the cut": lambda: evaluate(True),
        }
        whole, ours = alternate(rivals, repeats).values()
        size = kept.bytes_in_memory / len(rows)
    ratio = median(mine / other for mine, other in zip(ours, whole, strict=True))
    what = f"evaluation with last:{LAST}, {BATCH} texts of {SHORTEST} to {LENGTH} tokens"
    note = f"to all blocks; {size / 1000:.0f} kB kept per example"
    return [
        BenchRow(f"all blocks, {what}", median(whole), 1.0, "to all blocks"),
        BenchRow(f"from the cut, {what}", median(ours), ratio, note),
    ]


def texts() -> torch.Tensor:
    """Rows of a class and the tokens of texts of several lengths, -1 after their ends."""
    rows = torch.arange(BATCH * (LENGTH + 1)).view(BATCH, LENGTH + 1) * 7919 % 30000
    lengths = torch.linspace(SHORTEST, LENGTH, BATCH).long()
    rows[:, 1:][torch.arange(LENGTH) >= lengths[:, None]] = -1
    rows[:, 0] = torch.arange(BATCH) % 2
    return rows


def causal() -> nn.Module:
    """A causal model of the shape of SmolLM2 (134.5 M parameters, 30 blocks), untrained."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536,
                    num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                    tie_word_embeddings=True)
    )  # fmt: skip
