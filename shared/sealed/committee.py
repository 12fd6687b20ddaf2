"""Who adds up: a committee of the sites in a roster, and how many of its sums are needed.

A roster lists the sites that a site's operator accepts, with their public keys. It is brought by
hand: a server that could name sites would invent a committee, and a cohort of one site.

The sums of t + 1 of m members are needed. If c of them help the server and the others answer one
cohort each, two different cohorts can both be summed only if 2(t + 1) ≤ m + c. So t + 1 is the
least number above (m + c) / 2.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from shared.base.errors import ConfigError
from shared.protocol.site_id import SiteId, site_of

FEWEST_MEMBERS, USUAL_MEMBERS = 3, 9
KEY_BYTES = 32


@dataclass(frozen=True)
class Roster:
    """The sites of a federation with their X25519 public keys, as one operator accepts them."""

    keys: Mapping[SiteId, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        slots = {site.slot for site in self.keys}
        if len(slots) != len(self.keys) or len(set(self.keys.values())) != len(self.keys):
            raise ConfigError("roster: two sites have one key, or names of one slot: rename one")

    @classmethod
    def read(cls, path: Path) -> "Roster":
        """Read a roster: TOML with a table ``sites`` of names and keys, 64 hexadecimal digits each.

        Raises:
            ConfigError: the file is missing or is no roster.
        """
        try:
            sites = tomllib.loads(path.read_text())["sites"]
            keys = {site_of({"site": name}): bytes.fromhex(key) for name, key in sites.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f'{path}: a table [sites] of lines NAME = "KEY" expected, as \'dandelion client '
                f"key' prints them ({type(error).__name__}: {error})"
            ) from error
        if wrong := [site.name for site, key in keys.items() if len(key) != KEY_BYTES]:
            raise ConfigError(f"{path}: key of {wrong[0]}: {KEY_BYTES} bytes expected")
        return cls(keys)

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that two rosters share only if they are equal."""
        lines = sorted(f"{site.slot} {site.name} {key.hex()}" for site, key in self.keys.items())
        return sha256("\n".join(lines).encode()).digest()[:16]

    @cached_property
    def by_slot(self) -> Mapping[int, SiteId]:
        """The sites by their slots, which are also the points of their shares."""
        return {site.slot: site for site in self.keys}


@dataclass(frozen=True)
class Committee:
    """The members of one run's committee, in order, and how many of their sums are needed."""

    slots: tuple[int, ...]
    needed: int  # t + 1

    @classmethod
    def draw(cls, roster: Roster, run: bytes, size: int, colluders: int) -> "Committee":
        """Draw the committee of a run: the first of the roster by a hash, so that none chooses it.

        Args:
            roster: of the site.
            run: 16 bytes, names the run.
            size: how many members; 0: all sites, at most nine, and an odd number of them.
            colluders: how many of them may help the server.

        Raises:
            ConfigError: the roster is too small, or so many colluders cannot be borne.
        """
        count = size or usual_size(len(roster.keys))
        if not FEWEST_MEMBERS <= count <= len(roster.keys):
            raise ConfigError(
                f"a roster of at least {max(size, FEWEST_MEMBERS)} sites expected for a sealed "
                f"sum, got {len(roster.keys)}"
            )
        order = sorted(roster.keys, key=lambda s: sha256(run + s.name.encode()).digest())
        slots = tuple(sorted(site.slot for site in order[:count]))
        return cls(slots, sums_needed(count, colluders))


def usual_size(sites: int) -> int:
    """The largest odd number of members up to nine that so many sites can be."""
    most = min(sites, USUAL_MEMBERS)
    return most if most % 2 else most - 1


def sums_needed(members: int, colluders: int) -> int:
    """The least t + 1 above (m + c) / 2.

    Raises:
        ConfigError: all sums are too few: as many colluders as members, or more.
    """
    needed = (members + colluders) // 2 + 1
    if needed > members:
        raise ConfigError(
            f"privacy-colluders = {colluders} of a committee of {members}: fewer than {members} "
            "expected; two cohorts could both be summed"
        )
    return needed
