"""Plug-ins: modules of installed packages that register components, named by entry points.

A package names each in its metadata, under the group of its kind::

    [project.entry-points."dandelion.optimizers"]
    lion = "my_package.lion"

A registry imports all of its kind at the first look-up, so all that are installed belong to the
source files that server and sites must share, whether a run uses them or not.
"""

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from shared.base.errors import ConfigError
from shared.base.source_files import find_roots, list_sources

PREFIX = "dandelion."  # of groups: dandelion.optimizers, dandelion.directions, …


def load_plug_ins(group: str) -> Iterator[str]:
    """Import the plug-ins of a group, one with each step; yield what is imported next.

    Raises:
        ConfigError: one cannot be imported, or registers a name that is known already; says which.
    """
    for each in sorted(entry_points(group=group)):
        yield each.value
        try:
            each.load()
        except Exception as error:  # another's code: anything may go wrong there
            raise ConfigError(
                f"the plug-in {each.name} = {each.value} of {_package(each)} cannot be loaded: "
                f"{type(error).__name__}: {error}; mend or uninstall the package"
            ) from error


def list_plug_ins() -> list[str]:
    """Names and versions of the installed packages that have plug-ins, sorted."""
    return sorted({_package(each) for each in _all_of_them()})


def plug_in_sources() -> dict[str, Path]:
    """The ``.py`` files of every installed plug-in's top-level module, by name.

    Raises:
        ConfigError: one has no source files.
    """
    files: dict[str, Path] = {}
    for each in _all_of_them():
        sources = list_sources(root for root in find_roots(each.module) if root.suffix != ".so")
        if not sources:
            raise ConfigError(
                f"a module with source files expected of the plug-in {each.name} of "
                f"{_package(each)}, got {each.value}; reinstall or uninstall the package"
            )
        files |= sources
    return files


def _all_of_them() -> Iterator[EntryPoint]:
    installed = entry_points()
    for group in installed.groups:
        if group.startswith(PREFIX):
            yield from installed.select(group=group)


def _package(plug_in: EntryPoint) -> str:
    package = plug_in.dist
    return f"{package.name} {package.version}" if package else "a package without a name"
