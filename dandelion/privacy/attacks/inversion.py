"""Images are computed back from the numbers of one batch.

q numbers are q equations about B images; a gradient's size does not matter. Images in [0, 1] and
soft labels are fitted to the numbers by L-BFGS, without any other prior. With the directions known
this is the attack of Zhu et al. 2019 (https://arxiv.org/abs/1906.08935) on q projections of the
gradient in place of all of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dandelion.privacy.attacks.protection import Array, Protection
from dandelion.privacy.attacks.softmax import CLASSES, Softmax

STARTS, SHARPNESS = 3, 5.0
STEPS, STEPS_AGAIN = 300, 500  # the second for each image of a batch
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Inversion:
    """What an attacker knows of a round: parameters and directions z (q, k, p + 1)."""

    victim: Softmax
    z: Array

    def invert(self, numbers: Array, batch: int) -> tuple[Array, NDArray[np.int64]]:
        """The images (batch, p) and labels (batch,) that explain mean slopes (q,) best."""
        torch.manual_seed(0)
        target = torch.from_numpy(np.asarray(numbers, np.float64))
        tries = [self._fit(target, batch) for _ in range(STARTS)]
        if batch > 1:  # of one image, the first search finds all that there is
            tries = [self._fit_images(target, *each[1:]) for each in tries]
        _, images, labels = min(tries, key=lambda each: each[0])
        return images.numpy(), labels.numpy()

    def _fit(self, target: Tensor, batch: int) -> tuple[float, Tensor, Tensor]:
        """The misfit from one start, the images, and the labels."""
        pixels = self.victim.weights.shape[1] - 1
        free = 0.1 * torch.randn(batch, pixels + CLASSES, dtype=torch.float64)
        free.requires_grad_()

        def misfit() -> Tensor:
            labels = torch.softmax(SHARPNESS * free[:, pixels:], 1)
            return self._misfit(target, torch.sigmoid(free[:, :pixels]), labels)

        minimise(free, misfit, STEPS)
        images = torch.sigmoid(free[:, :pixels]).detach()
        return float(misfit().detach()), images, free[:, pixels:].detach().argmax(1)

    def _fit_images(
        self, target: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[float, Tensor, Tensor]:
        """The misfit, images and labels once labels are no longer free: fewer unknowns are left."""
        sure = torch.nn.functional.one_hot(labels, CLASSES).double()
        free = torch.logit(images, eps=1e-4).requires_grad_()

        def misfit() -> Tensor:
            return self._misfit(target, torch.sigmoid(free), sure)

        minimise(free, misfit, STEPS_AGAIN * len(images))
        return float(misfit().detach()), torch.sigmoid(free).detach(), labels

    def _misfit(self, target: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The mean squared error of the numbers (q,) that images with labels (batch, k) send."""
        weights, z = torch.from_numpy(self.victim.weights), torch.from_numpy(self.z)
        inputs = torch.cat([images, torch.ones(len(images), 1, dtype=torch.float64)], 1)
        error = torch.softmax(inputs @ weights.T, 1) - labels
        along = torch.einsum("qkp,kp->q", z, error.T @ inputs / len(images))
        return (along - target).square().mean()


def minimise(free: Tensor, misfit: Callable[[], Tensor], steps: int) -> None:
    """Bring ``free`` to a minimum of ``misfit()``, by so many steps of L-BFGS at most."""
    search = torch.optim.LBFGS(
        [free], max_iter=steps, tolerance_grad=1e-14, tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        search.zero_grad()
        loss = misfit()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Inverted:
    """How near an attack came to a batch."""

    error: float  # of the images, relative to their length
    labels: int  # right ones
    batch: int


def compare(guess: Array, guessed: Labels, images: Array, labels: Labels) -> Inverted:
    """Compare a guess with a batch, in the order of the guess that fits best."""
    batch = len(images)
    order = min(
        (list(each) for each in permutations(range(batch))),
        key=lambda each: float(np.linalg.norm(guess[each] - images)),
    )
    error = float(np.linalg.norm(guess[order] - images) / np.linalg.norm(images))
    both = (
        np.bincount(guessed.astype(int), minlength=CLASSES),
        np.bincount(labels.astype(int), minlength=CLASSES),
    )
    return Inverted(error, int(np.minimum(*both).sum()), batch)


def attack_batch(
    pixels: Array, labels: NDArray[np.int64], queries: int, seed: int, noise: float = 0.0
) -> Inverted:
    """Let a site measure a batch (B, p) with an untrained softmax, and invert what it sends.

    Args:
        pixels: of the images.
        labels: of the images (B,).
        queries: numbers that are sent.
        seed: of parameters and directions.
        noise: in clips, of half the length of the longest example; 0: no privacy.
    """
    random = np.random.default_rng(seed)
    victim = Softmax.by_chance(random)
    attack = Inversion(victim, victim.directions(queries, random))
    each = victim.differences(pixels, labels, attack.z)
    sent = each.mean(1)
    if noise:
        clip = float(np.linalg.norm(each, axis=0).max()) / 2
        sent = Protection(noise, clip).send(each, len(pixels), seed)
    return compare(*attack.invert(sent, len(pixels)), pixels, labels)
