"""A problem of one's own for tests, and small ways to spoil it."""

from pathlib import Path

MODULE = """
import torch
from torch import nn
from torch.nn import functional as F

import {helper}
from dandelion import Problem


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 4)
        self.inner = nn.Linear(6 + 4, 12)
        self.out = nn.Linear(12, 2)
        self.register_buffer("scale", torch.tensor([0.5]))

    def forward(self, x, number):
        hidden = torch.cat([x * self.scale, self.table(number)], 1)
        return self.out(self.inner(hidden).relu())


def data(seed, n):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-8, 9, (n, 6), generator=generator).float() / 8
    number = torch.randint(8, (n,), generator=generator)
    return x, number, (x.sum(1) > 0).long()


def loss(module, batch):
    return F.cross_entropy(module(*batch[:2]), batch[2], reduction="none") * {helper}.FACTOR


def accuracy(module, batch):
    return module(*batch[:2]).argmax(1) == batch[2]


problem = Problem(
    model=Net,
    examples=lambda: data(0, 120),
    evaluation=lambda: data(1, 60),
    loss=loss,
    metrics={{"accuracy": accuracy}},
)
"""
SETTINGS = {
    "num-rounds": 3, "num-clients": 3, "queries": 2, "zo-batch-size": 8, "eval-blocks": 60,
    "snapshot-interval": 2,
}  # fmt: skip


def write_problem(folder: Path, name: str, more: str = "") -> str:
    """Write a module and the one beside it that it imports; return the setting ``app``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}_helper.py").write_text("FACTOR = 1.0\n")
    (folder / f"{name}.py").write_text(MODULE.format(helper=f"{name}_helper") + more)
    return f"{name}:problem"
