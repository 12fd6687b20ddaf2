"""The identity of a site: the name and the slot that its node's config gives it."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from shared.base.errors import ConfigError

NAMED = 1 << 30  # slots of named sites have this bit, those of numbered ones do not: all < 2**31
LONGEST_NAME = 200  # characters


@dataclass(frozen=True, order=True)
class SiteId:
    """A data owner, ordered by slot; the same after any restart, unlike Flower's node id."""

    slot: int  # 1 + partition for numbered sites, a hash for named ones; 0 is no site's
    name: str


def site_of(node_config: Mapping[str, object]) -> SiteId:
    """Return the identity that ``site`` or else ``partition-id`` of a node's config gives.

    Raises:
        ConfigError: the node's config has neither, or they are not a name and a number.
    """
    name, partition = node_config.get("site"), node_config.get("partition-id")
    if isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable():
        word = int.from_bytes(sha256(name.encode()).digest()[:4], "little")
        return SiteId(NAMED | word % NAMED, name)
    if name in (None, "") and type(partition) is int and 0 <= partition < NAMED - 1:
        return SiteId(1 + partition, str(partition))
    raise ConfigError(
        "the node's config must have site = '<name>' or partition-id = <number>, "
        f"got {dict(node_config)}"
    )
