"""Parameters that a server chose: a network that lets one image of a batch of hundreds through.

All hidden units of a 64-8-10 network are open for images whose pixels sum to more than a threshold.
The same seed gives the same batch in every new run, so a server finds the threshold of the
brightest image by bisection. Its gradient then is all that the hidden layer sends, and the numbers
are linear in the image: no search is needed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dandelion.privacy.attacks.inversion import Inverted
from dandelion.privacy.attacks.protection import Array, Protection
from dandelion.privacy.attacks.softmax import CLASSES, PIXELS

HIDDEN, STEPS, EPS = 8, 13, 5e-4
MARGIN = 0.01  # of brightness: what a step along a direction may open or close
SIZES = (HIDDEN * PIXELS, HIDDEN, CLASSES * HIDDEN, CLASSES)  # of w, t, v, b
NOBODY = 0.02  # of the numbers: what bias slopes leave unexplained if no image passes


@dataclass(frozen=True)
class TrapNet:
    """The network with a threshold; v (10, 8) are its output weights, the output bias is zero."""

    v: Array

    def losses(self, inputs: Tensor, labels: Tensor, threshold: float, step: Tensor) -> Tensor:
        """Losses (n,) of images (n, 64) at the trap's parameters plus ``step`` (610,)."""
        w, t, v, b = torch.split(step, list(SIZES))
        hidden = torch.relu(inputs @ (1 + w.view(HIDDEN, PIXELS)).T - threshold + t)
        weights = torch.from_numpy(self.v).to(inputs.dtype) + v.view(CLASSES, HIDDEN)
        return torch.nn.functional.cross_entropy(hidden @ weights.T + b, labels, reduction="none")

    @property
    def size(self) -> int:
        """How many parameters it has."""
        return sum(SIZES)


@dataclass
class TrappedSite:
    """A site with one batch, asked again at each threshold; with a protection, if it has one."""

    pixels: Array
    labels: NDArray[np.int64]
    net: TrapNet
    z: Array  # (q, 610)
    noise: float = 0.0  # in clips
    requests: int = 0

    def ask(self, threshold: float) -> Array:
        """The numbers (q,) that leave: slopes of the mean loss, from float32 at two points."""
        self.requests += 1
        inputs, labels = torch.from_numpy(self.pixels).float(), torch.from_numpy(self.labels)
        rows = []
        for direction in torch.from_numpy(self.z).float():
            above, below = (
                self.net.losses(inputs, labels, threshold, sign * EPS * direction)
                for sign in (1.0, -1.0)
            )
            rows.append(((above - below) / (2 * EPS)).numpy())
        each = np.array(rows, np.float64)
        if not self.noise:
            return np.asarray(each.mean(1))
        clip = float(np.median(np.linalg.norm(each, axis=0)))
        return Protection(self.noise, clip).send(each, len(self.pixels), self.requests)


@dataclass(frozen=True)
class Trap:
    """A server that reads one image out of a batch of ``batch``."""

    site: TrappedSite
    batch: int

    def spring(self) -> tuple[Array, int]:
        """The image (64,) and its label that explain the numbers at the best threshold."""
        sent = self.site.ask(self._brightest()) * self.batch
        tries = [self._solve(sent, label) for label in range(CLASSES)]
        label = int(np.argmin([misfit for misfit, _ in tries]))
        return tries[label][1].clip(0, 1), label

    def _brightest(self) -> float:
        """A threshold below the brightest image's sum of pixels, by bisection."""
        low, high = 0.0, float(PIXELS)
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._is_empty(self.site.ask(middle)) else (middle, high)
        return low - MARGIN

    def _is_empty(self, numbers: Array) -> bool:
        """Whether counts of classes alone explain the numbers: no image passes."""
        bias = self.site.z[:, -CLASSES:]
        left = numbers - bias @ np.linalg.lstsq(bias, numbers, rcond=None)[0]
        return float(np.linalg.norm(left)) < NOBODY * float(np.linalg.norm(numbers))

    def _solve(self, sent: Array, label: int) -> tuple[float, Array]:
        """What numbers leave unexplained if the image has this label, and the image (64,).

        At the threshold all hidden units are as good as zero, so all classes are equally likely.
        Then slopes are linear in the image, in how far the units are open, and in the counts of
        the other images' classes.
        """
        w, t, v, b = np.split(self.site.z, np.cumsum(SIZES)[:-1], axis=1)
        error = 1 / CLASSES - np.eye(CLASSES)[label]
        inner = self.site.net.v.T @ error
        pixels = np.einsum("qhp,h->qp", w.reshape(-1, HIDDEN, PIXELS), inner)
        opened = np.einsum("qch,c->q", v.reshape(-1, CLASSES, HIDDEN), error)
        columns = np.hstack([pixels, opened[:, None], b])
        values = np.linalg.lstsq(columns, sent - t @ inner, rcond=None)[0]
        misfit = float(np.linalg.norm(columns @ values + t @ inner - sent))
        return misfit, values[:PIXELS]


def attack_with_trap(
    pixels: Array, labels: NDArray[np.int64], queries: int, seed: int, noise: float = 0.0
) -> Inverted:
    """Read the brightest image of a batch (B, 64); compare it with what it is.

    Args:
        pixels: of the batch.
        labels: of the batch (B,).
        queries: numbers of one request.
        seed: of the output weights and of the directions.
        noise: in clips, of the median length of the examples' numbers; 0: no privacy.
    """
    random = np.random.default_rng(seed)
    net = TrapNet(random.normal(0, 0.5, (CLASSES, HIDDEN)))
    site = TrappedSite(pixels, labels, net, random.choice([-1.0, 1.0], (queries, net.size)), noise)
    image, label = Trap(site, len(pixels)).spring()
    brightest = int(pixels.sum(1).argmax())
    error = float(np.linalg.norm(image - pixels[brightest]) / np.linalg.norm(pixels[brightest]))
    return Inverted(error, int(label == labels[brightest]), 1)
