"""MNIST and a small convolutional network, as a problem of one's own for Dandelion."""

import torch
from mnist import pictures_and_labels
from torch import nn
from torch.nn import functional as F

from dandelion import Problem


def network() -> nn.Module:
    """28,938 parameters: two convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
    )  # fmt: skip


def digits(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (n, 1, 28, 28), of mean 0 and deviation 1, and their digits (n,)."""
    pictures, labels = pictures_and_labels(part)
    return (pictures - 0.1307) / 0.3081, labels


def loss(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of each picture (B,)."""
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


def accuracy(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """1 for a picture whose digit is recognised, else 0 (B,)."""
    return module(batch[0]).argmax(1) == batch[1]


problem = Problem(
    model=network,
    examples=lambda: digits("train"),
    evaluation=lambda: digits("t10k"),
    loss=loss,
    metrics={"accuracy": accuracy},
)
