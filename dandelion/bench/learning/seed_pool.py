"""FedKSeed's pool: directions of which only so many exist, shared by all rounds and sites.

Qin et al. 2023, https://arxiv.org/abs/2312.06353: K seeds are fixed before the first round, and
every step of every site uses one of them. The sum of all steps along one seed is one number, so
that a model is K numbers away from its start, whatever the number of rounds.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import xxhash
from torch import Tensor

from shared.base.flat import Layout
from shared.base.options import option
from shared.directions import DIRECTIONS
from shared.directions.gaussian import Gaussian
from shared.randomness.streams import Key

NAME = "seed-pool"


@dataclass
class SeedPool:
    """Standard normals of ``pool`` keys: a key is folded to one of these, at random."""

    exact: ClassVar[bool] = Gaussian.exact
    pointwise: ClassVar[bool] = Gaussian.pointwise

    layout: Layout
    _: KW_ONLY
    pool: int = option(4096, "seeds that all rounds share", at_least=1)
    _normals: Gaussian = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._normals = Gaussian(self.layout)

    def fold(self, key: Key) -> Key:
        """The key of the pool that a key stands for; each is as likely as another."""
        words = f"{key.seed} {key.round} {key.slot} {key.index}".encode()
        return Key(key.seed, 0, 0, xxhash.xxh3_64_intdigest(words) % self.pool)

    def add_to_(
        self, flat: Tensor, keys: Sequence[Key], coefficients: Sequence[float], start: int = 0
    ) -> None:
        """Add sum of coefficients[k] * z(keys[k]) to ``flat`` (n,) in place, in key order."""
        self._normals.add_to_(flat, [self.fold(key) for key in keys], coefficients, start)

    def perturb_(self, out: Tensor, source: Tensor, start: int, key: Key, scale: float) -> None:
        """Write source + scale * z(key) into ``out``; both (n,), at address ``start``."""
        self._normals.perturb_(out, source, start, self.fold(key), scale)

    def add_rows_(self, rows: Tensor, ids: Tensor, start: int, key: Key, scale: float) -> None:
        """Add scale * z to ``rows`` (m, width): row i is row ids[i] of the matrix at ``start``."""
        self._normals.add_rows_(rows, ids, start, self.fold(key), scale)


def register() -> None:
    """Make the family known to this process; only the benchmark does so."""
    DIRECTIONS.register(NAME)(SeedPool)
