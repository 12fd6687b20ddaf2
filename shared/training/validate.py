"""A configuration is complete: its names are known, its options fit, its settings go together.

``Config`` itself checks types and ranges. What needs the registries is checked here, once, where a
configuration comes in: from a command, from Flower's run config, or from a ledger.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from shared.base.errors import UnknownNameError
from shared.config.schema import Config
from shared.data.documents import share_of
from shared.data.partition_rules import NAMES
from shared.data.resolve import source_of
from shared.tasks.task import TASKS
from shared.training.components import HOMES, components, with_own_options
from shared.training.rules import check_combinations


def configure(settings: Mapping[str, object]) -> Config:
    """The valid configuration that a mapping of settings, in any spelling, describes.

    Raises:
        ConfigError: an unknown setting or name, a wrong type, a value out of range, or settings
            that cannot work together.
    """
    return validate(Config(settings))


def validate(config: Config) -> Config:
    """Check names and combinations; return it with those options that its components have.

    A model may be anywhere, so it is looked up when it is loaded.

    Raises:
        UnknownNameError: no component, task, partitioner or data set has the name.
        ConfigError: an option of no component, or of none that is chosen; settings that cannot
            work together.
    """
    _check_names(config)
    config = with_own_options(config)
    check_combinations(config)
    return config


def check_data(config: Config) -> None:
    """Check that the data sets of a run are here, for a command that starts one.

    A site with data of its own needs no folder of the server, and a ledger is verified without any.

    Raises:
        ConfigError: a folder is missing.
        UnknownNameError: no data set has the name.
    """
    for name in _data_sets(config):
        source_of(name)


def _data_sets(config: Config) -> list[str]:
    names = (config.data.dataset, config.bp.dataset, config.evaluation.dataset)
    return [name or config.data.dataset for name in names]


def _check_names(config: Config) -> None:
    values = config.to_run_config()
    known: list[tuple[str, Iterable[str]]] = [
        *((kind, components(kind).names()) for kind in HOMES),
        ("partitioner", NAMES),
        ("task", TASKS.names()),
    ]
    for key, names in known:
        if (name := str(values[key])) not in names:
            raise UnknownNameError(key, name, names)
    for name in _data_sets(config):
        if not Path(name).is_absolute():  # a folder is looked for where it is read
            source_of(name)
    share_of(config.data.part)
