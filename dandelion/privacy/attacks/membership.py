"""Who was in the data? Likelihood ratios of single examples, from the numbers of many rounds.

The attacker knows parameters and directions, and has examples of its own of the same kind. What a
batch sends is as good as Gaussian; an example in it moves the mean by what it alone would send.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dandelion.privacy.attacks.protection import Array, Protection
from dandelion.privacy.attacks.softmax import Softmax
from shared.privacy.accounting import noise_for, rate_bits_of

RIDGE = 1e-9


@dataclass(frozen=True)
class LikelihoodRatio:
    """The test of one round, from the numbers (q, n) that the attacker's own examples would send.

    Args:
        own: of its examples, clipped as the site clips.
        batch: examples of the site's batch.
        noise: deviation of the site's noise on the mean.
    """

    own: Array
    batch: int
    noise: float = 0.0

    def scores(self, sent: Array, candidates: Array) -> Array:
        """The log likelihood ratios (n,) that candidates (q, n) were in the batch of ``sent``."""
        mean, queries = self.own.mean(1), len(self.own)
        spread = np.atleast_2d(np.cov(self.own)) / self.batch
        ridge = RIDGE + 1e-3 * float(np.trace(spread)) / queries + self.noise**2
        moved = (candidates - mean[:, None]) / self.batch
        weighed = np.linalg.solve(spread + ridge * np.eye(queries), moved)
        ratios: Array = weighed.T @ (sent - mean) - 0.5 * (weighed * moved).sum(0)
        return ratios


@dataclass(frozen=True)
class Members:
    """Scores of examples that were in the data, and of others."""

    inside: Array
    outside: Array


@dataclass(frozen=True)
class LedgerOfImages:
    """A site's rounds with a softmax, as whoever holds the ledger sees them.

    Attributes:
        images, labels: of three equal parts: the site's, foreign ones, and the attacker's own.
        batch, queries, rounds: of the run.
        epsilon: promised, with a delta of 1e-5; 0: no privacy.
        is_public: whether batches follow from public seeds, so that the question is whether a
            known row is this image; else it is whether the image is in the data.
    """

    images: Array
    labels: NDArray[np.int64]
    batch: int
    queries: int
    rounds: int
    epsilon: float = 0.0
    is_public: bool = True
    delta: float = 1e-5

    def attack(self, seed: int) -> Members:
        """The scores of the site's examples and of foreign ones, over all rounds."""
        random = np.random.default_rng(seed)
        victim, count = Softmax.by_chance(random), len(self.images) // 3
        parts = [slice(k * count, (k + 1) * count) for k in range(3)]
        bits = rate_bits_of(self.batch, count)
        noise = noise_for(self.epsilon, self.delta, self.rounds, bits) if self.epsilon else 0.0
        scores = np.zeros((2, count))
        for round_ in range(self.rounds):
            z = victim.directions(self.queries, random)
            each = [victim.slopes(self.images[p], self.labels[p], z) for p in parts]
            clip = float(np.median(np.linalg.norm(each[2], axis=0)))
            site = Protection(noise, clip, bits)
            if noise:
                rows = site.rows(count, seed * self.rounds + round_)
                sent = site.send(each[0][:, rows], self.batch, seed * self.rounds + round_)
                each = [clip_each(numbers, clip) for numbers in each]
            else:
                rows = random.choice(count, self.batch, replace=False)
                sent = each[0][:, rows].mean(1)
            test = LikelihoodRatio(each[2], self.batch, noise * clip / self.batch)
            tried = rows if self.is_public and not noise else np.arange(count)
            for kind in (0, 1):
                scores[kind, tried] += test.scores(sent, each[kind][:, tried])
        return Members(*scores)


def clip_each(numbers: Array, clip: float) -> Array:
    """Numbers (q, n), those of each example no longer than ``clip``."""
    return np.asarray(numbers * np.minimum(1, clip / np.linalg.norm(numbers, axis=0)))
