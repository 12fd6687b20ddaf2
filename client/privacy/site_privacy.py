"""What stands between a site's data and its replies: policy, account, and perhaps noise."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.privacy.account import Account
from client.privacy.budget import DataSet, Event
from client.privacy.fingerprints import fingerprint_dealt, fingerprint_own, fingerprint_request
from client.privacy.node_policy import NodePolicy, refuse
from client.privacy.noisy_numbers import NoisyNumbers, units_of
from client.privacy.site_secret import load_secret
from shared.base.errors import BudgetError
from shared.base.files import state_folder
from shared.config.schema import Config
from shared.data.examples import Examples
from shared.protocol.messages import Request
from shared.randomness.streams import Key
from shared.training.oracle import Oracle


@dataclass
class SitePrivacy:
    """The policy of a node, applied to one run on one site's data."""

    policy: NodePolicy
    config: Config
    account: Account | None = None  # None: nothing is counted
    noisy: NoisyNumbers | None = None  # None: raw numbers are sent

    @classmethod
    def open(
        cls, site: str, policy: NodePolicy, own: Config | None, config: Config, examples: Examples
    ) -> "SitePrivacy":
        """Check the run against the policy, and open what it needs.

        Args:
            site: its name.
            policy: of its node.
            own: the run as it reads the site's own data; None: the run deals them.
            config: of the run.
            examples: those that are measured on.

        Raises:
            PolicyError: the run is not allowed, or secret or budget cannot be used.
        """
        policy.check_run(config)
        if not config.privacy.is_local and not policy.max_numbers:
            return cls(policy, config)
        fingerprint = fingerprint_own(own) if own else fingerprint_dealt(examples)
        name = own.data.dataset if own else ""
        folder = privacy_folder(policy)
        unit, units = config.privacy.unit, int(units_of(examples, config.privacy.unit).max()) + 1
        account = Account.open(
            site, folder, DataSet(0, fingerprint, name, unit, units), policy, config
        )
        if not config.privacy.is_local:
            return cls(policy, config, account)
        try:
            secret = load_secret(folder)
        except BudgetError as error:
            refuse("secret", str(error))
        return cls(policy, config, account, NoisyNumbers(examples, config, account, secret))

    def measure(self, oracle: Oracle, request: Request, keys: list[Key]) -> NDArray[np.float32]:
        """Return noisy mean differences (q,) of a secret batch, once they are paid for.

        Raises:
            PolicyError: the budget does not allow it.
        """
        assert self.noisy is not None, "only a private run measures privately"
        return self.noisy.measure(oracle, request, keys)

    def pay_for_raw(self, oracle: Oracle, request: Request, numbers: int) -> None:
        """Count raw numbers before they leave, if the operator bounds how many may.

        Raises:
            PolicyError: they would be too many.
        """
        if self.account is None or not numbers:
            return
        data = self.account.data
        name = fingerprint_request(oracle, request, self.config, self.account.site)
        self.account.pay(Event(data.id, request.run.hex(), request.round, name, 0.0, 0, numbers))


def privacy_folder(policy: NodePolicy) -> Path:
    """The folder of secret and budget: the node's own, or one for all sites of this user."""
    return Path(policy.privacy_home) if policy.privacy_home else state_folder() / "privacy"
