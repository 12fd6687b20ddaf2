"""The discrete Gaussian on the integers, sampled exactly, in integers alone.

P(x) ∝ exp(−x² / 2σ²). Canonne, Kamath and Steinke 2020 (https://arxiv.org/abs/2004.00010),
algorithms 1 to 3. It gives at least the privacy of the continuous Gaussian of the same σ: ρ-zCDP
with ρ = Δ² / 2σ². Noise in floating point does not: its last bits betray what it was added to
(Mironov 2012; Jin et al. 2021, https://arxiv.org/abs/2112.05307).

How long a draw takes depends on the draw. A reply therefore says nothing of its time.
"""

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from shared.privacy.keystream import KeyStream


def discrete_gaussians(stream: KeyStream, sigma: int, count: int) -> NDArray[np.int64]:
    """Draw (count,) independent integers of standard deviation ``sigma``.

    Raises:
        ValueError: ``sigma`` is below 1.
    """
    if sigma < 1:
        raise ValueError(f"sigma of at least 1 expected, got {sigma}")
    return np.array([discrete_gaussian(stream, sigma * sigma) for _ in range(count)], np.int64)


def discrete_gaussian(stream: KeyStream, variance: int) -> int:
    """Draw an integer of a variance (of the continuous Gaussian) of at least 1: algorithm 3."""
    scale = isqrt(variance) + 1
    while True:
        drawn = discrete_laplace(stream, scale)
        # accept with probability exp(−(|y| − σ²/t)² / 2σ²), both multiplied by t²
        distance = abs(drawn) * scale - variance
        if is_exponential(stream, distance * distance, 2 * variance * scale * scale):
            return drawn


def discrete_laplace(stream: KeyStream, scale: int) -> int:
    """Draw an integer with P(x) ∝ exp(−|x| / scale): algorithm 2."""
    while True:
        low = stream.below(scale)
        if not is_exponential(stream, low, scale):
            continue
        high = 0
        while is_exponential(stream, 1, 1):
            high += 1
        size, is_negative = low + scale * high, stream.bits(1)
        if size or not is_negative:
            return -size if is_negative else size


def is_exponential(stream: KeyStream, numerator: int, denominator: int) -> bool:
    """True with probability exp(−numerator / denominator): algorithm 1."""
    while numerator > denominator:
        if not _is_exponential_below_one(stream, 1, 1):
            return False
        numerator -= denominator
    return _is_exponential_below_one(stream, numerator, denominator)


def _is_exponential_below_one(stream: KeyStream, numerator: int, denominator: int) -> bool:
    """The same for fractions of at most 1, by von Neumann's series."""
    step = 1
    while stream.below(denominator * step) < numerator:
        step += 1
    return step % 2 == 1
