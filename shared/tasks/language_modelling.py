"""Language modelling: next-token cross-entropy in nats, computed in fp32 and summed in fp64."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from shared.base.errors import ConfigError
from shared.base.metrics import EvalSums
from shared.config.schema import Config
from shared.data.documents import Documents
from shared.data.examples import Examples, cut
from shared.models.model import FORWARDS, Forward, LanguageModel, Tokenizer
from shared.tasks.task import TASKS

CHUNK = 1 << 22  # logits that cross-entropy treats at once: its temporaries stay this small
IGNORED = -100  # a target that does not count


@dataclass(frozen=True)
class LanguageModelling:
    """An example is a block of tokens in a row; the loss is that of every token but the first."""

    tokenizer: Tokenizer
    classes: int = 0

    def examples(self, documents: Documents, length: int) -> Examples:
        """The documents of each group joined and cut into blocks of ``length`` tokens."""
        return cut(documents, self.tokenizer, length)

    def loss(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean loss of the next tokens."""
        return loss_tensor(module, rows)

    def each(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean loss of each block's next tokens."""
        return example_losses(module, rows)

    def outcome(self, module: nn.Module, rows: Tensor) -> EvalSums:
        """Loss of the next tokens; there are no classes."""
        return EvalSums(float(loss_tensor(module, rows)) * len(rows), len(rows))


@TASKS.register("language-modelling")
def of(config: Config, model: LanguageModel) -> LanguageModelling:
    """For any model without a head.

    Raises:
        ConfigError: the model is a classifier.
    """
    if model.has_head:
        raise ConfigError(
            f"task language-modelling: {config.model.name!r} is a classifier, a causal language "
            "model expected; or use task classification"
        )
    return LanguageModelling(model.tokenizer)


def language_modelling(module: nn.Module, blocks: Tensor) -> float:
    """Return the mean loss of the next tokens of blocks (B, T). Costs one forward pass."""
    with torch.inference_mode():
        return float(loss_tensor(module, blocks))


def example_losses(module: nn.Module, blocks: Tensor) -> Tensor:
    """Return the mean loss of each block (B,), float64. Costs one forward pass."""
    with torch.inference_mode():
        return _token_losses(module, blocks).double().sum(1) / (blocks.shape[1] - 1)


def loss_tensor(module: nn.Module, blocks: Tensor) -> Tensor:
    """Return what ``language_modelling`` returns as a float64 scalar, for backpropagation."""
    return _token_losses(module, blocks).sum(dtype=torch.float64) / _predictions(blocks)


def _predictions(blocks: Tensor) -> int:
    """How many tokens of blocks (B, T) are predicted: all but the first of each."""
    return blocks.shape[0] * (blocks.shape[1] - 1)


def _token_losses(module: nn.Module, blocks: Tensor) -> Tensor:
    """Return the loss (B, T) float32 of predicting the token after each; 0 at the last.

    Targets are shifted, not logits: slicing those would copy them. Cross-entropy goes through the
    rows in chunks, so that beside the logits a large vocabulary needs CHUNK numbers, not a copy.
    """
    rows = logits(module, blocks).flatten(0, 1)  # (B * T, V)
    targets = F.pad(blocks[:, 1:], (0, 1), value=IGNORED).view(-1)
    size = max(1, CHUNK // rows.shape[1])
    losses = [
        F.cross_entropy(part.float(), target, ignore_index=IGNORED, reduction="none")
        for part, target in zip(torch.split(rows, size), torch.split(targets, size), strict=True)
    ]
    return torch.cat(losses).view(blocks.shape)


def logits(module: nn.Module, blocks: Tensor) -> Tensor:
    """Return the logits (B, T, V) of blocks (B, T), in as few torch calls as we know."""
    return _forward(type(module).__name__)(module, blocks)


@cache
def _forward(architecture: str) -> Forward:
    """Find the short forward of a class of modules; the module itself where none is registered."""
    return FORWARDS[architecture] if architecture in FORWARDS.names() else _call


def _call(module: nn.Module, blocks: Tensor) -> Tensor:
    scores: Tensor = module(blocks, use_cache=False, return_dict=False)[0]
    return scores
