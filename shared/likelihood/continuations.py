"""Log-likelihoods of continuations of a text, all of them from one forward pass where that works.

The score of a continuation is Σ log p(token | text, tokens before), or that sum divided by the
number of its tokens (Brown et al. 2020, https://arxiv.org/abs/2005.14165, section 2.4). The text is
computed once: its continuations follow it side by side as a tree in which a token sees the text and
its own ancestors alone (Miao et al. 2023, https://arxiv.org/abs/2305.09781). A model that cannot
read such a row gets one row for each continuation instead; the scores are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from shared.captured.capture import is_captured

NONE = -1  # fills a row of targets after a continuation's last token
TOLERANCE, ROUGH = 1e-4, 5e-2  # relative, of a likelihood from a tree; the second in bfloat16
_READS_TREES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class ContinuationTree:
    """Continuations of each text of a batch, or the same ones for all of them (first axis 1).

    Node 0 is the last token of the text. A continuation's last token is no node: none follows it.
    """

    tokens: Tensor  # (B, N) of the nodes; the first is filled in from the text
    depth: Tensor  # (B, N) how far a node is from node 0
    sees: Tensor  # (B, N, N) bool: whether a node is another's ancestor, or itself
    nodes: Tensor  # (B, k, L) the node after which each token of a continuation stands
    targets: Tensor  # (B, k, L) the tokens of the continuations, NONE after their ends

    @classmethod
    def of(cls, continuations: Sequence[Sequence[int]]) -> "ContinuationTree":
        """The tree (1, …) of some token sequences; nodes that they share are one."""
        numbers: dict[tuple[int, ...], int] = {(): 0}
        for tokens in continuations:
            for end in range(1, len(tokens)):
                numbers.setdefault(tuple(tokens[:end]), len(numbers))
        sees = torch.zeros(1, len(numbers), len(numbers), dtype=torch.bool)
        for prefix, number in numbers.items():
            for end in range(len(prefix) + 1):
                sees[0, number, numbers[prefix[:end]]] = True
        longest = max(map(len, continuations))
        nodes = torch.zeros(1, len(continuations), longest, dtype=torch.long)
        targets = torch.full_like(nodes, NONE)
        for row, tokens in enumerate(continuations):
            ends = [numbers[tuple(tokens[:end])] for end in range(len(tokens))]
            nodes[0, row, : len(tokens)] = torch.tensor(ends)
            targets[0, row, : len(tokens)] = torch.tensor([*tokens])
        return cls(
            torch.tensor([[(0, *prefix)[-1] for prefix in numbers]]),
            torch.tensor([[len(prefix) for prefix in numbers]]),
            sees,
            nodes,
            targets,
        )

    def to(self, device: torch.device) -> "ContinuationTree":
        """The same on a device."""
        parts = (self.tokens, self.depth, self.sees, self.nodes, self.targets)
        return ContinuationTree(*(part.to(device) for part in parts))

    def lengths(self) -> Tensor:
        """The number of tokens of each continuation (B, k)."""
        return (self.targets != NONE).sum(2)


def score_continuations(
    module: nn.Module, tokens: Tensor, lengths: Tensor, tree: ContinuationTree
) -> Tensor:
    """Summed log-likelihood (B, k) float32 of each continuation of texts (B, T).

    Args:
        module: a causal language model of transformers.
        tokens: of the texts, anything after their ends.
        lengths: of the texts (B,), at least 1.
        tree: the continuations.
    """
    width = tokens.shape[1] + tree.tokens.shape[1]
    if reads_trees(module) and width <= _window(module):
        return _score_tree(module, tokens, lengths, tree)
    return _score_alone(module, tokens, lengths, tree)


def _score_tree(
    module: nn.Module, tokens: Tensor, lengths: Tensor, tree: ContinuationTree
) -> Tensor:
    """All continuations of a text in one row: T columns of the text, N of the nodes."""
    text, rows = tokens.clamp(min=0), torch.arange(len(tokens), device=tokens.device)
    nodes = tree.tokens.expand(len(text), -1)
    last = text[rows, lengths - 1][:, None]
    places = torch.arange(text.shape[1], device=text.device).expand(len(text), -1)
    any_module: Any = module
    scores: Tensor = any_module(
        torch.cat([text, last, nodes[:, 1:]], 1),
        position_ids=torch.cat([places, lengths[:, None] - 1 + tree.depth], 1),
        attention_mask=_mask(lengths, text.shape[1], tree, _dtype(module)),
        use_cache=False,
        **({"logits_to_keep": nodes.shape[1]} if accepts(module, "logits_to_keep") else {}),
    ).logits
    return _sum_targets(scores[:, -nodes.shape[1] :], tree.nodes, tree.targets)


def _mask(lengths: Tensor, width: int, tree: ContinuationTree, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores (B, 1, T + N, T + N): 0 where a token sees another.

    Node 0 stands for the last token of the text, so nodes see the text without it.
    """
    batch, count, device = len(lengths), tree.tokens.shape[1], lengths.device
    columns = torch.arange(width, device=device)
    causal = (columns <= columns[:, None]).expand(batch, -1, -1)
    text = (columns < lengths[:, None] - 1)[:, None].expand(-1, count, -1)
    upper = torch.cat([causal, causal.new_zeros(batch, width, count)], 2)
    lower = torch.cat([text, tree.sees.expand(batch, -1, -1)], 2)
    sees = torch.cat([upper, lower], 1)[:, None]
    hidden = torch.zeros(sees.shape, dtype=dtype, device=device)
    return hidden.masked_fill(~sees, torch.finfo(dtype).min)


def _score_alone(
    module: nn.Module, tokens: Tensor, lengths: Tensor, tree: ContinuationTree
) -> Tensor:
    """Each continuation in a row of its own, right after the end of its text."""
    batch = len(tokens)
    targets = tree.targets.expand(batch, -1, -1)
    count, longest = targets.shape[1:]
    ends = lengths.repeat_interleave(count)
    rows = F.pad(tokens.clamp(min=0), (0, longest)).repeat_interleave(count, 0)
    places = ends[:, None] + torch.arange(longest, device=tokens.device)
    rows = rows.scatter(1, places, targets.reshape(-1, longest).clamp(min=0))[:, :-1]
    first = 0 if is_captured(tokens) else int(lengths.min()) - 1
    short = {"logits_to_keep": rows.shape[1] - first} if accepts(module, "logits_to_keep") else {}
    any_module: Any = module
    scores: Tensor = any_module(rows, use_cache=False, **short).logits
    nodes = (places - 1 - (rows.shape[1] - scores.shape[1]))[:, None]
    flat = _sum_targets(scores, nodes, targets.reshape(-1, 1, longest))
    return flat.view(batch, count)


def _sum_targets(scores: Tensor, nodes: Tensor, targets: Tensor) -> Tensor:
    """Sums (B, k) of log p of targets (B, k, L), each by the scores (B, N, V) at its node."""
    batch = len(scores)
    nodes = nodes.expand(batch, -1, -1).flatten(1)
    wanted = targets.expand(batch, -1, -1)
    flat = scores.float()
    rows = torch.arange(batch, device=scores.device)[:, None]
    chosen = flat[rows, nodes, wanted.flatten(1).clamp(min=0)]
    log_p = (chosen - flat.logsumexp(2).gather(1, nodes)).view(wanted.shape)
    return torch.where(wanted == NONE, 0.0, log_p).sum(2)


def reads_trees(module: nn.Module) -> bool:
    """Whether a model gives the same likelihoods from a tree as from rows of their own.

    It is tried once for each module, on a few tokens: a model may compute positions from a mask,
    or be recurrent.
    """
    if module not in _READS_TREES:
        _READS_TREES[module] = accepts(module, "position_ids") and _try_tree(module)
    return _READS_TREES[module]


def _try_tree(module: nn.Module) -> bool:
    any_module: Any = module
    size = any_module.get_input_embeddings().weight.shape[0]
    device = next(module.parameters()).device
    tokens = torch.arange(10, device=device).view(2, 5) * 7 % size
    lengths = torch.tensor([5, 3], device=device)
    numbers = [(11, 3), (11, 5, 2), (4,)]
    tree = ContinuationTree.of([[n % size for n in part] for part in numbers]).to(device)
    try:
        with torch.inference_mode():
            together = _score_tree(module, tokens, lengths, tree)
            alone = _score_alone(module, tokens, lengths, tree)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False
    tolerance = TOLERANCE if _dtype(module).itemsize > 2 else ROUGH
    return torch.allclose(together, alone, rtol=tolerance, atol=tolerance / 10)


def accepts(module: nn.Module, name: str) -> bool:
    """Whether a module's ``forward`` has a parameter of this name."""
    return name in signature(module.forward).parameters


def _window(module: nn.Module) -> int:
    """The width up to which every token sees all before it."""
    any_module: Any = module
    config = any_module.config
    windows = (getattr(config, name, None) for name in ("sliding_window", "window_size"))
    return min((int(w) for w in windows if isinstance(w, int) and w > 0), default=1 << 30)


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
