"""Who a site is in a sealed sum: its key, the roster that it accepts, and a run's committee.

The key follows from the site's secret and its name, so that there is no second file to keep.
Whoever reads the secret can take away the site's noise as well.
"""

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from client.privacy.node_policy import NodePolicy, refuse
from shared.base.errors import ConfigError
from shared.config.schema import Config
from shared.protocol.site_id import SiteId, site_of
from shared.sealed.boxes import private_key, public_bytes
from shared.sealed.committee import Committee, Roster

RUN_BYTES = 16  # of a run's name


@dataclass(frozen=True)
class SealingIdentity:
    """A site among the sites of its roster."""

    site: SiteId
    key: X25519PrivateKey = field(repr=False)
    roster: Roster

    @classmethod
    def open(
        cls, site: SiteId, secret: bytes, policy: NodePolicy, simulated: int
    ) -> "SealingIdentity":
        """Read the roster of a node, and find the site in it.

        Args:
            site: the node's.
            secret: its 32 bytes.
            policy: of the node.
            simulated: how many numbered sites one machine simulates, all by one secret, on data
                that the run deals; 0: the site has data of its own, and needs a roster.

        Raises:
            PolicyError: there is no roster, or it has another key for this site.
        """
        if not policy.roster and not simulated:
            refuse("roster", f"site {site.name} has data of its own: sealed sums need a roster")
        try:
            if policy.roster:
                roster = read_roster(Path(policy.roster), site, secret)
            else:
                roster = simulate_roster(secret, simulated)
        except ConfigError as error:
            refuse("roster", str(error))
        return cls(site, site_key(secret, site), roster)

    def check_run(self, config: Config, least: int) -> None:
        """Refuse a run whose sums this site would never add up, before anything is measured.

        Args:
            config: of the run.
            least: sites whose numbers a sum has at least.

        Raises:
            PolicyError: the roster is too small for its committee, or its sums have too few sites.
        """
        self.committee(bytes(RUN_BYTES), config)
        sites = config.federation.clients_per_round or config.federation.num_clients
        if sites // config.privacy.parts < least:
            detail = f"{least} sites expected in each of {config.privacy.parts} sums, of {sites}"
            refuse("min-cohort", detail)

    def committee(self, run: bytes, config: Config) -> Committee:
        """The committee of a run.

        Raises:
            PolicyError: the roster is too small for what the run asks for.
        """
        p = config.privacy
        try:
            return Committee.draw(self.roster, run, p.committee, p.colluders)
        except ConfigError as error:
            refuse("roster", str(error))


def read_roster(path: Path, site: SiteId, secret: bytes) -> Roster:
    """Read a roster, and find a site's own key in it.

    Raises:
        ConfigError: the file is missing or is no roster, or has another key for this site, or none.
    """
    roster, own = Roster.read(path), public_bytes(site_key(secret, site))
    if roster.keys.get(site) != own:
        raise ConfigError(
            f"{path}: {own.hex()} of site {site.name} expected, as 'dandelion client key' prints it"
        )
    return roster


def site_key(secret: bytes, site: SiteId) -> X25519PrivateKey:
    """The key of a site, by its secret and its name."""
    return private_key(secret, sha256(site.name.encode()).digest())


def simulate_roster(secret: bytes, count: int) -> Roster:
    """The roster of the sites that one machine simulates with one secret."""
    sites = [site_of({"partition-id": number}) for number in range(count)]
    return Roster({site: public_bytes(site_key(secret, site)) for site in sites})
