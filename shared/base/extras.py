"""Packages that few need, each installed by an extra of this project."""

from importlib import import_module
from typing import Any

from shared.base.errors import ConfigError


def import_extra(extra: str, needs: str, module: str) -> Any:  # noqa: ANN401  (a module)
    """Import a module of a package that an extra installs.

    Args:
        extra: its name, as in ``dandelion[privacy]``.
        needs: what the user asked for, which needs the package.
        module: the module's dotted name.

    Raises:
        ConfigError: the package is not installed; says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(
            f"{needs} needs {package}: install it with pip install 'dandelion[{extra}]'"
        ) from error
