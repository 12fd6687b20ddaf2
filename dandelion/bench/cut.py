"""Evaluations with the last blocks of a causal model trained: from kept activations, or whole."""

from collections.abc import Callable
from contextlib import nullcontext
from statistics import median

import torch
from torch import nn

from dandelion.bench.rows import BenchRow, alternate, on_threads
from shared.base.flat import flatten
from shared.config.run_sections import RunSettings
from shared.features.cut import KeptPrefix
from shared.tasks.classification import Classification
from shared.tasks.verbaliser import word_logits
from shared.training.scopes import trainable

LAST = 2  # blocks that are trained
BATCH, SHORTEST, LENGTH = 16, 24, 64  # texts, and tokens of the shortest and the longest


def cut(repeats: int = 5) -> list[BenchRow]:
    """Medians of seconds to evaluate a batch with the last blocks trained, and of their ratio.

    Activations at the cut were kept before: each example has run through the model once.
    """
    with on_threads():
        module = causal().eval()
        model, rows = flatten(module, trainable(f"last:{LAST}", module)), texts()
        task = Classification(2, lambda text, most: rows[0].numpy(), word_logits((11, 12)))
        prefix = KeptPrefix(model, task.each, True, "", RunSettings(keep_disk=0))

        def evaluate(begins: bool) -> None:
            with torch.inference_mode(), prefix.at(rows) if begins else nullcontext():
                task.outcome(module, rows)

        prefix.prepare(rows)
        rivals: dict[str, Callable[[], object]] = {
            "all blocks": lambda: evaluate(False),
            "from the cut": lambda: evaluate(True),
        }
        whole, ours = alternate(rivals, repeats).values()
        size = prefix.bytes_in_memory / len(rows)
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
