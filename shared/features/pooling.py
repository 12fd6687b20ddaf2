"""Feature vectors of examples: hidden states of a frozen model at one token, or averaged.

A setting such as ``last+layer:22:mean`` names the parts of a feature vector, which are joined. Each
part has a layer (the last one, unless it says ``layer:k``) and a pooling over the tokens of a text.
With ``@2`` it is of the text in the second prompt, the first of the setting ``more-prompts``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from shared.base.errors import ConfigError, UnknownNameError

FIRST, LAST, MEAN = "first", "last", "mean"
POOLINGS = (LAST, MEAN, FIRST)
LAYER = "layer"
MOST_PROMPTS = 100  # no number of a prompt has more than two digits


@dataclass(frozen=True)
class FeaturePart:
    """One part of a feature vector."""

    pooling: str
    layer: int | None = None  # 1-based block whose output is pooled; None: the last hidden state
    prompt: int = field(default=1, repr=False)  # in which the text is read

    def __str__(self) -> str:
        place = "" if self.layer is None else f"{LAYER}:{self.layer}:"
        return f"{place}{self.pooling}{f'@{self.prompt}' * (self.prompt > 1)}"


def parse_features(text: str, usual: str) -> tuple[FeaturePart, ...]:
    """Read the setting ``features``, such as ``last``, ``mean`` or ``last+layer:22:mean``.

    Args:
        text: the setting; empty means ``usual``.
        usual: the pooling of a part that names none.

    Raises:
        ConfigError: a part is not ``[layer:k:]pooling[@prompt]``.
        UnknownNameError: there is no such pooling.
    """
    return tuple(_parse_part(part.strip(), usual) for part in (text or usual).split("+"))


def _parse_part(text: str, usual: str) -> FeaturePart:
    part, at, number = text.partition("@")
    if at and not (number.isdecimal() and 0 < int(number) < MOST_PROMPTS):
        raise ConfigError(f"features: the number of a prompt expected after @, got {text!r}")
    return replace(_parse_place(part, usual), prompt=int(number) if at else 1)


def _parse_place(part: str, usual: str) -> FeaturePart:
    if not part.startswith(LAYER):
        if part not in POOLINGS:
            raise UnknownNameError("features", part, (*POOLINGS, f"{LAYER}:<number>:<pooling>"))
        return FeaturePart(part)
    _, number, pooling = (*part.split(":"), "", "")[:3]
    if not number.isdigit() or part.count(":") > 2 or not int(number):
        raise ConfigError(f"features: {LAYER}:<number>:<pooling> expected, got {part!r}")
    if pooling and pooling not in POOLINGS:
        raise UnknownNameError("pooling", pooling, POOLINGS)
    return FeaturePart(pooling or usual, int(number))


def count_features(parts: Sequence[FeaturePart], module: nn.Module) -> int:
    """The length of the feature vectors (f) of a model of transformers.

    Raises:
        ConfigError: the model has fewer layers, or its configuration says no hidden size.
    """
    config: Any = getattr(module, "config", None)
    width, layers = (getattr(config, key, None) for key in ("hidden_size", "num_hidden_layers"))
    if width is None or layers is None:
        raise ConfigError(
            "features: a PreTrainedModel of transformers with a hidden size expected, got "
            f"{type(module).__name__}"
        )
    deepest = max((part.layer or 0 for part in parts), default=0)
    if deepest > layers:
        raise ConfigError(f"features: a layer from 1 to {layers} expected, got {deepest}")
    return int(width) * len(parts)


def pool(parts: Sequence[FeaturePart], states: Sequence[Tensor], lengths: Tensor) -> Tensor:
    """Return feature vectors (B, f) in float32.

    Args:
        parts: of the vectors.
        states: of each layer (B, T, h), that of the embeddings first, the last one normalised.
        lengths: of the texts (B,); what follows a text is not read.
    """
    is_text = torch.arange(states[0].shape[1], device=lengths.device) < lengths[:, None]
    rows = torch.arange(len(lengths), device=lengths.device)
    pooled = []
    for part in parts:
        state = states[-1 if part.layer is None else part.layer].float()
        if part.pooling == MEAN:
            pooled.append((state * is_text[..., None]).sum(1) / lengths[:, None])
        else:
            pooled.append(state[rows, lengths - 1 if part.pooling == LAST else 0])
    return torch.cat(pooled, 1)


def run_with_states(
    module: nn.Module, tokens: Tensor, lengths: Tensor, pad: int
) -> tuple[Sequence[Tensor], Tensor]:
    """One forward pass: the hidden states of all layers (B, T, h), and the model's scores.

    The scores of a causal model are its logits (B, V) after the last token of each text, those of
    an encoder with a head are its classes' (B, k). ``pad`` stands after a text in ``tokens``
    (B, T), and no text attends to it.
    """
    is_text = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    accepted = signature(module.forward).parameters
    options: Mapping[str, object] = {
        "output_hidden_states": True,
        "return_dict": True,
        "attention_mask": is_text.long(),
    }
    if "use_cache" in accepted:
        options = {**options, "use_cache": False}
    positions, which = torch.unique(lengths - 1, return_inverse=True)
    if "logits_to_keep" in accepted:
        options = {**options, "logits_to_keep": positions}
    output: Any = module(torch.where(is_text, tokens, pad), **options)
    scores: Tensor = output.logits
    if scores.dim() > 2:
        rows = torch.arange(len(tokens), device=tokens.device)
        scores = scores[rows, which if "logits_to_keep" in accepted else lengths - 1]
    return output.hidden_states, scores
