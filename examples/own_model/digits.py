"""MNIST and a small convolutional network, as a problem of one's own for Dandelion."""

import torch
from torch import nn
from torch.nn import functional as F

from dandelion import Problem
from shared.data.sets.pictures import mnist_pictures  # as torchvision.datasets.MNIST, packaged


def network() -> nn.Module:
    """28,938 parameters: two convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
    )  # fmt: skip


def digits(is_test: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (n, 1, 28, 28) and their digits (n,)."""
    mnist = mnist_pictures()
    rows = torch.from_numpy(mnist.held_out) == is_test
    pictures = torch.from_numpy(mnist.pixels)[rows, None] / 255
    return (pictures - 0.1307) / 0.3081, torch.from_numpy(mnist.labels)[rows]


def loss(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of each picture (B,)."""
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


def accuracy(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """1 for a picture whose digit is recognised, else 0 (B,)."""
    return module(batch[0]).argmax(1) == batch[1]


problem = Problem(
    model=network,
    examples=lambda: digits(is_test=False),
    evaluation=lambda: digits(is_test=True),
    loss=loss,
    metrics={"accuracy": accuracy},
)
