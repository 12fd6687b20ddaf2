"""Partition rules of ``flwr-datasets``, as Flower's own examples use them.

They draw through floating point: sites whose machines or versions differ may compute different
partitions. The rules in ``partition_rules`` are the same everywhere.
"""

import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ConfigError

Ids = NDArray[np.int64]


def iid(count: int, seed: int, alpha: float, classes: int) -> Any:  # noqa: ANN401
    """Shards of equal size; the items are shuffled before."""
    from flwr_datasets.partitioner import IidPartitioner

    return IidPartitioner(count)


def natural(count: int, seed: int, alpha: float, classes: int) -> Any:  # noqa: ANN401
    """One shard for each id."""
    from flwr_datasets.partitioner import NaturalIdPartitioner

    return NaturalIdPartitioner("id")


def dirichlet(count: int, seed: int, alpha: float, classes: int) -> Any:  # noqa: ANN401
    """Each id in proportions of a Dirichlet distribution (Yurochkin et al. 2019)."""
    from flwr_datasets.partitioner import DirichletPartitioner

    return DirichletPartitioner(
        count, "id", alpha, min_partition_size=1, self_balancing=True, seed=seed
    )


def pathological(count: int, seed: int, alpha: float, classes: int) -> Any:  # noqa: ANN401
    """``classes`` ids in each shard (Li et al. 2022, https://arxiv.org/abs/2102.02079)."""
    from flwr_datasets.partitioner import PathologicalPartitioner

    return PathologicalPartitioner(count, "id", classes, "first-deterministic", seed=seed)


def grow(growth: str, count: int, seed: int, alpha: float, classes: int) -> Any:  # noqa: ANN401
    """Shards whose sizes grow with their number; the items are shuffled before."""
    import flwr_datasets.partitioner

    return getattr(flwr_datasets.partitioner, f"{growth}Partitioner")(count)


PARTITIONERS: dict[str, Callable[[int, int, float, int], Any]] = {
    "flower-dirichlet": dirichlet,
    "flower-exponential": partial(grow, "Exponential"),
    "flower-iid": iid,
    "flower-linear": partial(grow, "Linear"),
    "flower-natural": natural,
    "flower-pathological": pathological,
    "flower-square": partial(grow, "Square"),
}


def owners_by(name: str, ids: Ids, count: int, seed: int, alpha: float, classes: int) -> Ids:
    """Return the shard of each item (n,).

    Raises:
        ConfigError: the partitioner refuses these items, or leaves some of them out.
    """
    from datasets import Dataset

    partitioner = PARTITIONERS[name](count, seed, alpha, classes)
    dataset = Dataset.from_dict({"id": ids, "row": np.arange(len(ids))})
    partitioner.dataset = dataset.shuffle(seed=seed)
    owners = np.full(len(ids), -1, np.int64)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):  # some draw a progress bar
            warnings.simplefilter("ignore")  # items that are left out are counted below
            if partitioner.num_partitions != count:
                raise ConfigError(
                    f"{name} makes one shard for each of {partitioner.num_partitions} ids: set as "
                    f"many clients, or choose another rule; got {count}"
                )
            for number in range(count):
                owners[partitioner.load_partition(number)["row"]] = number
    except ValueError as error:
        raise ConfigError(f"{name} cannot partition {len(ids)} items: {error}") from error
    missing = int((owners < 0).sum())
    if missing:
        raise ConfigError(
            f"{name} gives {missing} of {len(ids)} items to none of {count} shards; more shards "
            f"or more ids for each (partition-classes = {classes}) are needed"
        )
    return owners
