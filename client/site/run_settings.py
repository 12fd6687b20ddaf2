"""A run's settings and a node's config, parsed and checked once and not for every message."""

import json
from collections.abc import Mapping
from functools import lru_cache

from client.site.node_config import NodeConfig
from shared.config.schema import RESUMABLE, Config
from shared.training.validate import configure

Items = tuple[tuple[str, type, object], ...]


def read_settings(
    run_config: Mapping[str, object], node_config: Mapping[str, object]
) -> tuple[Config, str]:
    """A run's configuration with what the node has of its own in its place; once for each.

    Returns:
        The configuration, and a name of what of it decides numbers.

    Raises:
        PolicyError: the node's operator does not allow it.
        ConfigError: it is not one.
    """
    given = _items(_with_own(run_config, node_config))
    node_of(node_config).check_run(_read_unchecked(given))
    return _read(given)


def _with_own(
    run_config: Mapping[str, object], node_config: Mapping[str, object]
) -> dict[str, object]:
    own = {key: node_config.get(key) for key in ("device", "init-from")}
    if not run_config.get("init-from"):
        del own["init-from"]  # the run starts from nothing
    given = {key: value for key, value in own.items() if value}
    return {**run_config, "app-dir": node_config.get("app-dir", ""), **given}


def node_of(node_config: Mapping[str, object]) -> NodeConfig:
    """A node's config, checked once and not for every message."""
    return _check_node(_items(node_config))


def _items(given: Mapping[str, object]) -> Items:
    """A mapping that can be a name: 1 and 1.0 differ."""
    return tuple((key, type(value), value) for key, value in given.items())


@lru_cache(maxsize=8)
def _check_node(given: Items) -> NodeConfig:
    return NodeConfig.of({key: value for key, _, value in given})


@lru_cache(maxsize=8)
def _read_unchecked(given: Items) -> Config:
    """Parse types and ranges alone: to look names up is to import modules and to open folders."""
    return Config.from_run_config({key: value for key, _, value in given})


@lru_cache(maxsize=8)
def _read(given: Items) -> tuple[Config, str]:
    """Parse a configuration, once and not for every message; name what of it decides numbers."""
    config = configure({key: value for key, _, value in given})
    decisive = {k: v for k, v in config.to_run_config().items() if k not in RESUMABLE}
    return config, json.dumps(decisive, sort_keys=True)
