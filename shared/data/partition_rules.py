"""Rules that partition items into shards: each item is in one shard, and no shard is empty.

A shard is one client's part; an item is an example. The random rules here use Philox's words and
integers alone, so every machine computes the same partition. Those of ``flwr-datasets`` are in
``flower_partitioners``.
"""

from collections.abc import Callable, Sequence
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ConfigError, UnknownNameError
from shared.data.flower_partitioners import PARTITIONERS, owners_by
from shared.randomness.philox import words
from shared.randomness.streams import partition_key

Ids = NDArray[np.int64]
Rule = Callable[[Ids, int, int, float], Ids]  # (ids (n,), count, seed, alpha) -> owners (n,)

ONE = 1 << 16  # alpha is a multiple of 1 / ONE
ATTEMPTS = 10


def partition(
    ids: Sequence[str] | Sequence[int] | Ids,
    count: int,
    rule: str = "natural",
    seed: int = 0,
    alpha: float = 0.5,
    classes: int = 2,
) -> list[Ids]:
    """Partition items into ``count`` shards; return the items of each, ascending.

    Args:
        ids: the group or the label of each item (n,).
        count: number of shards.
        rule: ``natural``, ``iid``, ``dirichlet``, or one of ``flwr-datasets``: ``flower-...``.
        seed: of the random rules.
        alpha: of the Dirichlet rules; small: each id is in few shards, large: as ``iid``.
        classes: of ``flower-pathological``: the number of ids in a shard.

    Raises:
        UnknownNameError: of the rule.
        ConfigError: some shard would be empty.
    """
    if rule not in NAMES:
        raise UnknownNameError("shard rule", rule, NAMES)
    if not 1 <= count <= len(ids):
        raise ConfigError(f"between 1 and {len(ids)} shards expected for {len(ids)} items: {count}")
    _, inverse = np.unique(np.asarray(ids), return_inverse=True)
    items = inverse.astype(np.int64)
    if rule in RULES:
        owners = RULES[rule](items, count, seed, alpha)
    else:
        owners = owners_by(rule, items, count, seed, alpha, classes)
    shards = [np.flatnonzero(owners == number) for number in range(count)]
    if empty := sum(not len(rows) for rows in shards):
        raise ConfigError(
            f"{rule} leaves {empty} of {count} shards without any of {len(ids)} items"
        )
    return shards


def natural(ids: Ids, count: int, seed: int, alpha: float) -> Ids:
    """Assign whole groups, the largest first, each to the smallest shard so far (Graham 1969)."""
    del seed, alpha
    sizes = np.bincount(ids)
    if len(sizes) < count:
        raise ConfigError(
            f"the natural rule splits no group: {len(sizes)} groups cannot fill {count} shards; "
            "use at most that many clients, or another rule"
        )
    owner, load = np.empty(len(sizes), np.int64), np.zeros(count, np.int64)
    for group in np.argsort(-sizes, kind="stable"):
        owner[group] = np.argmin(load)  # the first of several
        load[owner[group]] += sizes[group]
    return owner[ids]


def iid(ids: Ids, count: int, seed: int, alpha: float) -> Ids:
    """Assign shuffled items in turn: sizes differ by one at most."""
    del alpha
    owners = np.empty(len(ids), np.int64)
    owners[np.argsort(_words64(seed, 0, len(ids)), kind="stable")] = np.arange(len(ids)) % count
    return owners


def dirichlet(ids: Ids, count: int, seed: int, alpha: float) -> Ids:
    """Assign each id's items in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019).

    Proportions are drawn again, up to 10 times, while some shard is empty.
    """
    weight = round(alpha * ONE) if isfinite(alpha) else 0
    if weight < 1:
        raise ConfigError(f"an alpha of at least {1 / ONE} expected, got {alpha}")
    for attempt in range(ATTEMPTS):
        owners = _urn(ids, count, weight, _words64(seed, attempt, len(ids)))
        if np.bincount(owners, minlength=count).all():
            return owners
    raise ConfigError(
        f"alpha = {alpha} left one of {count} shards without any of {len(ids)} items, "
        f"{ATTEMPTS} times; use a larger alpha or fewer clients"
    )


def _urn(ids: Ids, count: int, weight: int, draws: NDArray[np.uint64]) -> Ids:
    """Draw items' shards from a Pólya urn per id (Blackwell and MacQueen 1973).

    An item gets a uniform shard with probability count·alpha / (count·alpha + items before it),
    else the shard of one of those items. That is exactly "draw proportions from a Dirichlet, then
    every shard from them", in integers: no logarithm whose last bit differs between machines.
    """
    assigned: dict[int, list[int]] = {}  # the shards of each id's items so far
    owners = np.empty(len(ids), np.int64)
    for item, (id_, word) in enumerate(zip(ids.tolist(), draws.tolist(), strict=True)):
        before = assigned.setdefault(id_, [])
        pick = word * (count * weight + len(before) * ONE) >> 64
        new = pick < count * weight
        owner = pick // weight if new else before[(pick - count * weight) // ONE]
        before.append(owner)
        owners[item] = owner
    return owners


def _words64(seed: int, index: int, count: int) -> NDArray[np.uint64]:
    """Return ``count`` words of 64 bits."""
    pairs = words(partition_key(seed, index), range(-(-count // 2))).astype(np.uint64)
    return (pairs[:, 0::2] << np.uint64(32) | pairs[:, 1::2]).reshape(-1)[:count]


RULES: dict[str, Rule] = {"dirichlet": dirichlet, "iid": iid, "natural": natural}
NAMES = (*RULES, *PARTITIONERS)
