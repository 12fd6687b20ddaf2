"""One data set's account: an answer is paid for before it leaves, or refused by name.

``max-epsilon`` bounds what all runs together cost. How many more rounds like the present one fit is
computed once, by bisection over privacy loss distributions, and then counted.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from client.privacy.budget import BudgetLedger, DataSet, Event
from client.privacy.node_policy import NodePolicy, refuse
from shared.base.errors import BudgetError, ConfigError
from shared.config.schema import Config
from shared.privacy.accounting import Rounds, affordable, epsilon_of

LOG = logging.getLogger("dandelion")
Others = tuple[Rounds, ...]


@dataclass
class Account:
    """The account of a site's data, under the policy of its node."""

    site: str
    budget: BudgetLedger
    data: DataSet
    policy: NodePolicy
    config: Config
    _limits: dict[tuple[float, int, Others], int] = field(default_factory=dict, repr=False)
    _runs: set[str] = field(default_factory=set, repr=False)  # whose first answer was logged

    @classmethod
    def open(
        cls, site: str, folder: Path, data: DataSet, policy: NodePolicy, config: Config
    ) -> "Account":
        """Open the account of a data set, whose id the budget knows or gives.

        Raises:
            PolicyError: the budget cannot be used; the log of this process says why.
        """
        try:
            budget = BudgetLedger(folder)
            return cls(site, budget, budget.register(data), policy, config)
        except BudgetError as error:
            refuse("budget", str(error))

    def pay(self, event: Event) -> None:
        """Commit an answer before it leaves; one that was paid for already costs nothing.

        Raises:
            PolicyError: it would exceed ``max-epsilon`` or ``max-numbers``, or the budget cannot be
                used.
        """
        try:
            self.budget.spend(event, lambda: self._check(event))
        except BudgetError as error:
            refuse("budget", str(error))
        last = event.round == self.config.training.rounds
        if event.noise and (event.run not in self._runs or last):
            self._runs.add(event.run)
            LOG.warning("%s", self.statement(event.run))

    def _check(self, event: Event) -> None:
        self._check_numbers(event)
        self._check_epsilon(event)

    def _check_numbers(self, event: Event) -> None:
        most, sent = self.policy.max_numbers, self.budget.numbers(event.data)
        if most and sent + event.numbers > most:
            refuse("max-numbers", f"{sent} numbers of {self.data.name} have left, {most} may")

    def _check_epsilon(self, event: Event) -> None:
        if not (most := self.policy.max_epsilon):
            return
        spent = self.budget.spent(event.data)
        same = [r.times for r in spent if r[1:] == (event.noise, event.rate_bits)]
        others = tuple(r for r in spent if r[1:] != (event.noise, event.rate_bits))
        count, name = sum(same), (event.noise, event.rate_bits, others)
        if count >= self._limits.get(name, 0):
            left = max(1, self.config.training.rounds - event.round + 1)
            most_of_kind = max(count + left, 2 * count)  # so that this is seldom done
            all_rounds = Rounds(most_of_kind, event.noise, event.rate_bits)
            self._limits[name] = affordable(others, all_rounds, most, self.policy.delta)
        if count >= self._limits[name]:
            epsilon = epsilon_of(spent, self.policy.delta)
            detail = f"{epsilon:.3g} of {most:g} is spent, and another answer would exceed it"
            refuse("max-epsilon", f"{self.data.name}: {detail}")

    def statement(self, run: str) -> str:
        """What the data have paid, in one line.

        For example: ``ward-3 · data 7f3a5c01 (1000 examples) · run 5be1: 812 of 1000 rounds ·
        epsilon 1.79 of 2.00 at delta 1e-05 · unit: one example, added or removed · …``.
        """
        own, settings = self.budget.spent(self.data.id, run), self.config.privacy
        done = sum(each.times for each in own)
        newest = own[-1] if own else Rounds(0, 0.0, 0)
        return " · ".join(
            (
                self.site,
                f"data {self.data.fingerprint[:8]} ({self.data.units} {settings.unit}s)",
                f"run {run[:8]}: {done} of {self.config.training.rounds} rounds",
                epsilon_text(spent_epsilon(self.budget, self.data, self.policy), self.policy),
                f"unit: one {settings.unit}, added or removed",
                f"noise {newest.noise:.3g}, rate 1/{1 << newest.rate_bits}, clip {settings.clip:g}",
                "against: everyone who sees its replies",
            )
        )


def spent_epsilon(budget: BudgetLedger, data: DataSet, policy: NodePolicy) -> float | None:
    """What a data set has spent over all runs; None where dp-accounting is not installed."""
    try:
        return epsilon_of(budget.spent(data.id), policy.delta)
    except ConfigError:
        return None


def epsilon_text(epsilon: float | None, policy: NodePolicy) -> str:
    """What is spent, of what a policy allows, in words."""
    spent = "unknown (dp-accounting is not installed)" if epsilon is None else f"{epsilon:.3g}"
    limit = f" of {policy.max_epsilon:.3g}" if policy.max_epsilon else ", no limit,"
    return f"epsilon {spent}{limit} at delta {policy.delta:g}"
