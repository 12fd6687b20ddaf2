"""A private round of a site: a secret batch, clipped numbers, exact noise, one payment.

Rows and noise are a pseudorandom function of the site's secret and of the *whole* request. The same
request therefore gets the same bits. Any other, at other parameters or settings, gets fresh ones
and is another payment: were the noise the same, a server could subtract it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from client.privacy.account import Account
from client.privacy.budget import Event
from client.privacy.example_differences import example_differences
from client.privacy.fingerprints import fingerprint_request
from client.privacy.node_policy import refuse
from shared.config.privacy_section import GROUP
from shared.config.schema import Config
from shared.data.examples import Examples
from shared.privacy.accounting import Rounds, epsilon_of, noise_for, rate_bits_of
from shared.privacy.discrete_gaussian import discrete_gaussians
from shared.privacy.grid import check_rounding, from_grid, largest_batch, noise_steps, to_grid
from shared.privacy.keystream import KeyStream, sample_units
from shared.protocol.messages import Request
from shared.randomness.streams import Key
from shared.training.oracle import Oracle


@dataclass
class NoisyNumbers:
    """Measures rounds of one site under ``privacy = local``."""

    examples: Examples
    config: Config
    account: Account
    secret: bytes

    def measure(self, oracle: Oracle, request: Request, keys: list[Key]) -> NDArray[np.float32]:
        """Return noisy mean differences (q,) of a batch that only this site knows.

        Raises:
            PolicyError, ConfigError: as ``measure_steps``.
        """
        c = self.config
        steps = self.measure_steps(oracle, request, keys, self.name(oracle, request))
        return from_grid(steps, self.clip, c.zo.batch_size)

    def measure_steps(
        self, oracle: Oracle, request: Request, keys: list[Key], name: bytes
    ) -> NDArray[np.int64]:
        """Return the noisy sum (q,) of the batch in grid steps, once it is paid for.

        Args:
            oracle: at the parameters to measure at.
            request: of the round.
            keys: of its directions.
            name: of the request, as the method of this name gives it.

        Raises:
            PolicyError: the policy or the budget does not allow it; nothing has been spent.
            ConfigError: the clip is too small for what losses are rounded to.
        """
        check_rounding(self.config)
        numbers = self.config.zo.queries
        self.account.policy.check_noise(self.noise, self.rate_bits)
        self.account.pay(
            Event(self.account.data.id, request.run.hex(), request.round, name, self.noise,
                  self.rate_bits, numbers)
        )  # fmt: skip
        stream = KeyStream(self.secret, "rows", name)
        chosen = sample_units(stream, self.account.data.units, self.rate_bits)
        rows = np.flatnonzero(np.isin(self.units, chosen))
        total: NDArray[np.int64] = to_grid(self._sum_by_unit(oracle, rows, keys), self.clip).sum(1)
        noise = KeyStream(self.secret, "noise", name)
        return total + discrete_gaussians(noise, noise_steps(self.noise), numbers)

    @property
    def clip(self) -> float:
        """The bound on the Euclidean norm of one unit's differences (q,)."""
        return self.config.privacy.clip_of_differences(self.config.zo.eps, self.config.zo.queries)

    def name(self, oracle: Oracle, request: Request) -> bytes:
        """SHA-256 of all that an answer depends on beside the secret."""
        how, account = repr((self.noise, self.rate_bits)), self.account
        attempt = (f"attempt {request.attempt}",) if request.attempt else ()
        more = account.site, account.data.fingerprint, how, *attempt
        return fingerprint_request(oracle, request, self.config, *more)

    @cached_property
    def units(self) -> NDArray[np.int64]:
        """The number of each example's unit (n,)."""
        return units_of(self.examples, self.config.privacy.unit)

    @cached_property
    def rate_bits(self) -> int:
        """A unit is in a batch with probability 2^-rate_bits: zo-batch-size on average or less."""
        return rate_bits_of(self.config.zo.batch_size, len(self.examples))

    @cached_property
    def noise(self) -> float:
        """The noise in clips: as the run says, or as its promised ε needs with this site's data.

        Raises:
            PolicyError: the run's noise is too small for the ε that it promises.
        """
        p, rounds = self.config.privacy, self.config.training.rounds
        if not p.noise:
            return noise_for(p.epsilon, p.delta, rounds, self.rate_bits)
        if p.epsilon:
            cost = epsilon_of([Rounds(rounds, p.noise, self.rate_bits)], p.delta)
            if cost > p.epsilon:
                needed = noise_for(p.epsilon, p.delta, rounds, self.rate_bits)
                refuse("privacy-noise", f"{p.noise:g} costs epsilon {cost:.3g} here, the run "
                       f"promises {p.epsilon:g}: at least {needed:.3g} expected")  # fmt: skip
        return p.noise

    def _sum_by_unit(
        self, oracle: Oracle, rows: NDArray[np.int64], keys: list[Key]
    ) -> NDArray[np.float64]:
        """The differences (q, u) of each unit in the batch, summed over its examples."""
        chosen, place = np.unique(self.units[rows], return_inverse=True)
        sums = np.zeros((len(chosen), len(keys)))
        for part, numbers in self._numbers(oracle, rows, keys):
            np.add.at(sums, place[part], numbers.T)
        return sums.T

    def _numbers(
        self, oracle: Oracle, rows: NDArray[np.int64], keys: list[Key]
    ) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Parts of the rows with their differences (q, n): memory is bounded, however many rows."""
        most = largest_batch(self.config.zo.batch_size)
        for first in range(0, len(rows), most):
            part = slice(first, first + most)
            batch = torch.from_numpy(self.examples.batch(rows[part]))
            yield part, example_differences(oracle, self.config, batch, keys)


def units_of(examples: Examples, unit: str) -> NDArray[np.int64]:
    """The number of each example's unit (n,), from 0 without a gap: its own, or its group's."""
    if unit == GROUP:
        return np.unique(examples.groups, return_inverse=True)[1].astype(np.int64)
    return np.arange(len(examples), dtype=np.int64)
