"""The settings of one node, which its operator decides (``--node-config``), checked."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from shared.base.errors import ConfigError, UnknownNameError
from shared.protocol.site_id import site_of

WORKERS = ("auto", "inline", "resident")
ONE_MESSAGE = "flwr-clientapp"  # Flower's program that lives for one message, in deployment only
Value = str | int | float | bool


@dataclass(frozen=True)
class NodeConfig:
    """Settings of a node; keys are these names with hyphens."""

    site: str = ""  # who this is; or else:
    partition_id: int = 0  # the number of its shard of the run's data
    num_partitions: int = 1
    data: str = ""  # its own: a folder or a data set's name, in place of the run's ``dataset``
    bp_data: str = ""  # the same in place of ``bp-dataset``
    worker: str = "auto"  # inline: in this process; resident: in one that stays
    device: str = ""  # cpu, cuda, cuda:1 …; empty: what the run's config says
    can_backpropagate: bool = True  # false: it measures, and never computes a gradient
    store: str = ""  # folder for the replica; empty: resident workers choose one, others have none
    store_every: float = 60.0  # least seconds between two writes of it
    worker_idle: float = 1800.0  # seconds without a message after which a resident worker stops

    @classmethod
    def of(cls, node_config: Mapping[str, object]) -> "NodeConfig":
        """Check a node's config.

        Raises:
            ConfigError: unknown key, wrong type, or no name.
        """
        known = {field.name.replace("_", "-"): field for field in fields(cls)}
        if unknown := sorted(str(key) for key in node_config if key not in known):
            raise ConfigError(
                f"node config: unknown keys {unknown}; known: {', '.join(sorted(known))}"
            )
        values: dict[str, object] = {}
        for key, value in node_config.items():
            kind = type(known[key].default)
            given = float(value) if kind is float and type(value) is int else value
            if type(given) is not kind:
                raise ConfigError(f"node config: {key}: {kind.__name__} expected, got {value!r}")
            values[known[key].name] = given
        site_of(node_config)
        node = cls(**values)  # type: ignore[arg-type]
        if node.worker not in WORKERS:
            raise UnknownNameError("worker", node.worker, WORKERS)
        if node.store and not Path(node.store).is_absolute():
            raise ConfigError(f"node config: store: an absolute path expected, got {node.store!r}")
        for key, name in (("data", node.data), ("bp-data", node.bp_data)):
            if name.startswith((".", "~")):
                raise ConfigError(
                    f"node config: {key}: a folder's absolute path or a data set's name expected, "
                    f"got {name!r}"
                )
        return node

    @property
    def resident(self) -> bool:
        """Whether a process that stays does the work.

        ``auto``: yes if this process lives for one message only, as in deployment; no in Flower's
        simulation and in the local engine, whose processes stay themselves.
        """
        if self.worker == "auto":
            return Path(sys.argv[0]).name == ONE_MESSAGE
        return self.worker == "resident"
