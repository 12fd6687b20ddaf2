"""The settings of one node, which its operator decides (``--node-config``), checked."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from client.privacy.node_policy import NodePolicy
from shared.base.errors import ConfigError, UnknownNameError
from shared.base.options import Option, Value, option, options_of
from shared.protocol.site_id import site_of

ONE_MESSAGE = "flwr-clientapp"  # Flower's program that lives for one message, in deployment only


@dataclass(frozen=True)
class NodeConfig(NodePolicy):
    """Settings of a node; keys are these names with hyphens."""

    site: str = option("", "who this is; if empty, the partition says so")
    partition_id: int = option(0, "number of its shard of the run's data", at_least=0)
    num_partitions: int = option(1, "how many shards there are", at_least=1)
    data: str = option("", "its own data: a folder or a data set's name, instead of the run's")
    bp_data: str = option("", "the same, instead of the run's bp-dataset")
    text_column: str = option("", "of its own data, if its columns are not called as the run says")
    label_column: str = option("", "the same")
    prompt_column: str = option("", "the same")
    response_column: str = option("", "the same")
    init_from: str = option("", "its own copy of what a run starts from, instead of init-from")
    app_dir: str = option("", "folder that is searched for the module of a run's app")
    worker: str = option(
        "auto",
        "inline: in this process; resident: in one that stays",
        choices=("auto", "inline", "resident"),
    )
    guard: str = option("", "socket of the process that does the work; empty: there is none")
    device: str = option("", "cpu, cuda, cuda:1, cuda:0,1 …; empty: as the run says")
    can_backpropagate: bool = option(True, "false: it measures and never computes a gradient")
    store: str = option("", "folder for the replica; empty: resident workers choose one")
    store_every: float = option(60.0, "least time between two writes of it", unit="s", at_least=0)
    worker_idle: float = option(
        1800.0, "time without a message after which a resident worker stops", unit="s", above=0
    )

    @classmethod
    def of(cls, node_config: Mapping[str, object]) -> "NodeConfig":
        """Check a node's config.

        Raises:
            ConfigError: unknown key, wrong type, out of range, no name, or a relative folder.
        """
        known = {each.key: (name, each) for name, each in options_of(cls).items()}
        if unknown := sorted(str(key) for key in node_config if key not in known):
            raise ConfigError(
                f"node config: unknown keys {unknown}; known: {', '.join(sorted(known))}"
            )
        values = {known[key][0]: _check(known[key][1], value) for key, value in node_config.items()}
        site_of(node_config)
        node = cls(**values)  # type: ignore[arg-type]
        folders = {
            "store": node.store, "app-dir": node.app_dir, "privacy-home": node.privacy_home,
            "init-from": node.init_from, "guard": node.guard, "roster": node.roster,
        }  # fmt: skip
        for key, folder in folders.items():
            if folder and not Path(folder).is_absolute():
                raise ConfigError(f"node config: {key}: an absolute path expected, got {folder!r}")
        _check_range(node)
        for key, name in (("data", node.data), ("bp-data", node.bp_data)):
            if name.startswith((".", "~")):
                raise ConfigError(
                    f"node config: {key}: a folder's absolute path or a data set's name expected, "
                    f"got {name!r}"
                )
        return node

    @classmethod
    def kinds(cls) -> dict[str, type]:
        """The types of the keys' values."""
        return {each.key: each.kind for each in options_of(cls).values()}

    @property
    def own_settings(self) -> frozenset[str]:
        """Settings of a run in whose place the site has something of its own."""
        own = {"dataset": self.data, "bp-dataset": self.bp_data, "init-from": self.init_from}
        return frozenset(key for key, value in own.items() if value)

    @property
    def columns(self) -> dict[str, str]:
        """The run's settings of columns that are others for the node's own data."""
        names = ("text_column", "label_column", "prompt_column", "response_column")
        return {name: value for name in names if (value := getattr(self, name))}

    @property
    def resident(self) -> bool:
        """Whether a process that stays does the work.

        ``auto``: yes if this process lives for one message only, as in deployment; no in Flower's
        simulation and in the local engine, whose processes stay themselves.
        """
        if self.worker == "auto":
            return Path(sys.argv[0]).name == ONE_MESSAGE
        return self.worker == "resident"


def _check_range(node: NodeConfig) -> None:
    """Read ``eps-range`` once, so that a wrong one is refused before a request comes."""
    try:
        _ = node.range_of_eps
    except ConfigError as error:
        raise ConfigError(f"node config: {error}") from error


def _check(declaration: Option, value: object) -> Value:
    try:
        return declaration.check(value)
    except UnknownNameError:
        raise
    except ConfigError as error:
        raise ConfigError(f"node config: {error}") from error
