"""A softmax on 8 x 8 digits: the model that privacy figures and attacks are measured on.

It is a problem of one's own, with 650 parameters:

    dandelion privacy plan --accuracy --set app=dandelion.privacy.attacks.softmax:problem ...

An attacker who knows its parameters can write down what any image would have sent.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shared.data.sets.pictures import digit_pictures
from shared.problem.problem import Problem

PIXELS, CLASSES = 64, 10
TRAINING, SERVER = 1000, 200  # pictures of sites, and of the server: it has no labels of its own
Array = NDArray[np.float64]


def digits() -> tuple[Array, NDArray[np.int64]]:
    """All digits as pixels (1797, 64) from 0 to 1 with their labels (1797,), in a mixed order."""
    pictures = digit_pictures()
    order = np.random.default_rng(0).permutation(len(pictures.labels))
    return pictures.features().astype(np.float64)[order], pictures.labels[order]


def _part(rows: slice) -> tuple[Tensor, Tensor]:
    pixels, labels = digits()
    return torch.from_numpy(pixels[rows]).float(), torch.from_numpy(labels[rows])


def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of each picture (B,)."""
    return cross_entropy(module(batch[0]), batch[1], reduction="none")


def accuracy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """1 for a picture whose digit is recognised, else 0 (B,)."""
    recognised: Tensor = module(batch[0]).argmax(1) == batch[1]
    return recognised


class Centred(nn.Module):
    """A softmax of pixels less their mean, in units of their deviation, in the server's pictures.

    Pixels are not negative, so without this all gradients share one direction: it uses up the clip,
    and the noise is then large beside what tells digits apart.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        pixels, _ = _part(slice(TRAINING, TRAINING + SERVER))
        self.register_buffer("mean", pixels.mean(0))
        self.register_buffer("deviation", (pixels - self.mean).square().mean().sqrt())
        self.linear = nn.Linear(PIXELS, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        """The scores (B, 10) of pictures (B, 64)."""
        scores: Tensor = self.linear((pixels - self.mean) / self.deviation)
        return scores


problem = Problem(
    model=Centred,
    examples=lambda: _part(slice(TRAINING)),
    evaluation=lambda: _part(slice(TRAINING + SERVER, None)),
    loss=loss,
    metrics={"accuracy": accuracy},
)


@dataclass(frozen=True)
class Softmax:
    """A softmax as an attacker knows it: weights (k, p + 1), the last column is the bias."""

    weights: Array

    @classmethod
    def by_chance(cls, random: np.random.Generator) -> "Softmax":
        """Untrained weights of deviation 0.3."""
        return cls(random.normal(0, 0.3, (CLASSES, PIXELS + 1)))

    def directions(self, queries: int, random: np.random.Generator) -> Array:
        """Random signs (q, k, p + 1)."""
        return random.choice([-1.0, 1.0], (queries, *self.weights.shape))

    def slopes(self, pixels: Array, labels: NDArray[np.int64], z: Array) -> Array:
        """The slopes (q, n) of the losses of images (n, p) along directions z (q, k, p + 1)."""
        inputs = with_bias(pixels)
        error = np.exp(inputs @ self.weights.T)
        error /= error.sum(1, keepdims=True)
        error[np.arange(len(pixels)), labels] -= 1
        along: Array = np.einsum("nk,qkp,np->qn", error, z, inputs, optimize=True)
        return along

    def differences(
        self, pixels: Array, labels: NDArray[np.int64], z: Array, eps: float = 1e-3
    ) -> Array:
        """Slopes (q, n) as a site measures them: from losses in float32 at two points each."""
        inputs = torch.from_numpy(with_bias(pixels)).float()
        weights, target = torch.from_numpy(self.weights).float(), torch.from_numpy(labels)
        rows = []
        for direction in torch.from_numpy(z).float():
            above, below = (
                cross_entropy(inputs @ (weights + sign * eps * direction).T, target,
                                reduction="none")
                for sign in (1.0, -1.0)
            )  # fmt: skip
            rows.append(((above - below) / (2 * eps)).numpy())
        return np.array(rows, np.float64)


def with_bias(pixels: Array) -> Array:
    """Images (n, p) with a last column of ones (n, p + 1)."""
    return np.hstack([pixels, np.ones((len(pixels), 1))])
