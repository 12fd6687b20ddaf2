"""Labels of several tokens: which are scored whole, and their scores as the logits of classes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from shared.base.errors import ConfigError
from shared.generation.prompt_frame import PromptFrame
from shared.likelihood.continuations import ContinuationTree, score_continuations

MOST_NODES = 128  # of one pass: logits of a whole vocabulary are made for each
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class LabelScores:
    """Scores of the same labels after every text, as the logits of classes."""

    labels: tuple[Tokens, ...]  # the tokens of each, in the order of the classes
    is_mean: bool  # divided by the number of tokens
    _trees: dict[torch.device, list[ContinuationTree]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def longest(self) -> int:
        """The number of tokens of the longest label."""
        return max(map(len, self.labels))

    def __call__(self, module: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Scores (B, k) float32 of the labels after texts (B, T) of some lengths (B,).

        Costs a forward pass for every MOST_NODES nodes of the labels' tree.
        """
        parts = []
        for tree in self._on(tokens.device):
            sums = score_continuations(module, tokens, lengths, tree)
            parts.append(sums / tree.lengths() if self.is_mean else sums)
        return torch.cat(parts, 1)

    def _on(self, device: torch.device) -> list[ContinuationTree]:
        """The labels' trees, each of at most MOST_NODES nodes, stored on the device once."""
        if device not in self._trees:
            with torch.inference_mode(False):  # backpropagation could not save its tensors
                trees = [ContinuationTree.of(part).to(device) for part in self._divide()]
            self._trees[device] = trees
        return self._trees[device]

    def _divide(self) -> list[list[Tokens]]:
        """The labels in their order, in parts of few nodes."""
        parts: list[list[Tokens]] = [[]]
        nodes = 1
        for label in self.labels:
            if parts[-1] and nodes + len(label) - 1 > MOST_NODES:
                parts.append([])
                nodes = 1
            parts[-1].append(label)
            nodes += len(label) - 1
        return parts


def whole_labels(frame: PromptFrame, scoring: str, words: Sequence[str]) -> LabelScores | None:
    """The scores of whole labels, if ``label-scoring`` wants them; None: by their first tokens.

    If a label begins another, the token that ends a response follows each: else the shorter one
    would always be the likelier.

    Args:
        frame: of the prompt that labels follow.
        scoring: the setting ``label-scoring``.
        words: the labels.

    Raises:
        ConfigError: two labels have the same tokens.
    """
    labels = [frame.label(word) for word in words]
    is_first = len({label[0] for label in labels}) == len(labels)
    if scoring == "first" or (scoring == "auto" and is_first):
        return None
    _check_distinct(labels, words)
    if _begins_another(labels):
        labels = [(*label, frame.end) for label in labels]
    return LabelScores(tuple(labels), scoring == "mean")


def _check_distinct(labels: Sequence[Tokens], words: Sequence[str]) -> None:
    seen: dict[Tokens, str] = {}
    for label, word in zip(labels, words, strict=True):
        if label in seen:
            raise ConfigError(
                f"label-words of different tokens expected, got {seen[label]!r} and {word!r}, "
                f"which are both {list(label)} to this tokenizer; choose other words"
            )
        seen[label] = word


def _begins_another(labels: Sequence[Tokens]) -> bool:
    """Whether one label's tokens are the first tokens of another's."""
    ordered = sorted(labels)
    return any(second[: len(first)] == first for first, second in pairwise(ordered))
