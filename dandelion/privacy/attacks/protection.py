"""What a site under ``privacy = local`` sends of numbers that an attacker would like to have."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.privacy.discrete_gaussian import discrete_gaussians
from shared.privacy.grid import from_grid, noise_steps, to_grid
from shared.privacy.keystream import KeyStream, sample_units

Array = NDArray[np.float64]
SECRET = bytes(range(32))  # of the attacked site; no attack reads it


@dataclass(frozen=True)
class Protection:
    """Clip, noise and sampling of a site, by the code that a private site runs."""

    noise: float  # in clips
    clip: float  # on the Euclidean norm of one example's numbers (q,)
    rate_bits: int = 0  # an example is in a batch with probability 2^-rate_bits

    def rows(self, count: int, request: int) -> NDArray[np.int64]:
        """The examples of ``count`` that a request is answered with; nobody else knows them."""
        stream = KeyStream(SECRET, "rows", request.to_bytes(32, "little"))
        return sample_units(stream, count, self.rate_bits)

    def send(self, each: Array, batch: int, request: int) -> Array:
        """The mean (q,) that leaves, of the numbers (q, n) of the examples in a batch."""
        stream = KeyStream(SECRET, "noise", request.to_bytes(32, "little"))
        noise = discrete_gaussians(stream, noise_steps(self.noise), len(each))
        return from_grid(to_grid(each, self.clip).sum(1) + noise, self.clip, batch).astype(float)


def area_under_curve(members: Array, others: Array) -> float:
    """The probability that a member scores above another; 0.5 if nothing is told."""
    return float((members[:, None] > others[None]).mean())


def true_positives(members: Array, others: Array, false_positives: float) -> float:
    """The share of members above the score that this share of the others exceeds."""
    return float((members > np.quantile(others, 1 - false_positives)).mean())
