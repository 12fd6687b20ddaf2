"""Parameters that a server chose: a network that lets one image of a batch of hundreds through.

All hidden units of a 64-8-10 network are open for images whose pixels sum to more than a threshold.
The same seed gives the same batch in every new run, so a server finds the threshold of the
brightest image by bisection. Its gradient then is all that the hidden layer sends.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dandelion.privacy.attacks.inversion import SHARPNESS, Inverted, minimise
from dandelion.privacy.attacks.protection import Array, Protection
from dandelion.privacy.attacks.softmax import CLASSES, PIXELS

HIDDEN, STEPS, STARTS, EPS = 8, 11, 4, 1e-3
NOBODY = 0.02  # of the numbers: what bias slopes leave unexplained if no image passes


@dataclass(frozen=True)
class TrapNet:
    """The network with a threshold; v (10, 8) are its output weights, the output bias is zero."""

    v: Array

    def losses(self, inputs: Tensor, labels: Tensor, threshold: float, step: Tensor) -> Tensor:
        """Losses (n,) of images (n, 64) at the trap's parameters plus ``step`` (610,)."""
        w, t, v, b = torch.split(step, [HIDDEN * PIXELS, HIDDEN, CLASSES * HIDDEN, CLASSES])
        hidden = torch.relu(inputs @ (1 + w.view(HIDDEN, PIXELS)).T - threshold + t)
        weights = torch.from_numpy(self.v).to(inputs.dtype) + v.view(CLASSES, HIDDEN)
        return torch.nn.functional.cross_entropy(hidden @ weights.T + b, labels, reduction="none")

    @property
    def size(self) -> int:
        """How many parameters it has."""
        return HIDDEN * (PIXELS + 1) + CLASSES * (HIDDEN + 1)


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
        threshold = self._brightest()
        sent = torch.from_numpy(self.site.ask(threshold) * self.batch)
        torch.manual_seed(0)
        tries = [self._fit(sent, threshold) for _ in range(STARTS)]
        _, image, label = min(tries, key=lambda each: each[0])
        return image, label

    def _brightest(self) -> float:
        """A threshold below the brightest image's sum of pixels, by bisection."""
        low, high = 0.0, float(PIXELS)
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._is_empty(self.site.ask(middle)) else (middle, high)
        return low

    def _is_empty(self, numbers: Array) -> bool:
        """Whether counts of classes alone explain the numbers: no image passes."""
        bias = self.site.z[:, -CLASSES:]
        left = numbers - bias @ np.linalg.lstsq(bias, numbers, rcond=None)[0]
        return float(np.linalg.norm(left)) < NOBODY * float(np.linalg.norm(numbers))

    def _fit(self, sent: Tensor, threshold: float) -> tuple[float, Array, int]:
        """The misfit from one start, the image, and its label."""
        z, v = torch.from_numpy(self.site.z), torch.from_numpy(self.site.net.v)
        free = 0.1 * torch.randn(PIXELS + 2 * CLASSES, dtype=torch.float64)
        free.requires_grad_()

        def misfit() -> Tensor:
            image = torch.sigmoid(free[:PIXELS])
            label = torch.softmax(SHARPNESS * free[PIXELS:-CLASSES], 0)
            hidden = torch.nn.functional.leaky_relu(image.sum() - threshold, 0.01)
            error = torch.softmax(v.sum(1) * hidden, 0) - label
            inner = v.T @ error
            shares = torch.softmax(free[-CLASSES:], 0)  # of the other images, by class
            others = (self.batch - 1) * (1 / CLASSES - shares)
            output = (error[:, None] * hidden).expand(-1, HIDDEN)
            parts = [torch.outer(inner, image), inner, output, error + others]
            return (z @ torch.cat([each.reshape(-1) for each in parts]) - sent).square().mean()

        minimise(free, misfit)
        chosen = int(free[PIXELS:-CLASSES].detach().argmax())
        return float(misfit().detach()), torch.sigmoid(free[:PIXELS]).detach().numpy(), chosen


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
