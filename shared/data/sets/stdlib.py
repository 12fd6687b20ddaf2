"""Texts that every Python brings: its standard library's sources, and its reference manual."""

import sysconfig
import tokenize
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from shared.base.errors import DataError
from shared.data.documents import DATASETS, Documents, Source

# Installed packages, tests and their data, and files that a build generates for one machine.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
GENERATED = ("_sysconfigdata", "config-")


def stdlib(max_samples: int, by: str = "module") -> Documents:
    """Read the sources of this interpreter's library: one document per file, a group per module.

    They need no network. They differ between Python versions: no tokenizer or vocabulary may be
    derived from them.

    Raises:
        DataError: the sources are not there. No other text replaces them, since a run on it under
            the same name could not be repeated.
    """
    del by
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(_sources(folder), key=lambda path: path.relative_to(folder).parts)
    if not paths:
        raise DataError(
            f"no Python sources in {folder} (some images strip them): install the standard library "
            "(Debian: libpython3-stdlib) or choose dataset = topics, which needs no sources"
        )
    groups = [path.relative_to(folder).parts[0].removesuffix(".py") for path in paths]
    chosen = Documents([str(path) for path in paths], groups).thin(max_samples)
    return Documents([_read(Path(path)) for path in chosen.texts], chosen.groups)


def _sources(folder: Path) -> Iterator[Path]:
    """Walk the folder, never into what is left out (an environment there may hold gigabytes)."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in LEFT_OUT or path.name.startswith(GENERATED):
            continue
        if path.is_dir():
            yield from _sources(path)
        elif path.suffix == ".py" and path.stat().st_size:
            yield path


def _read(path: Path) -> str:
    """Decode a source as the interpreter would, by its own coding line."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Python source: {error}") from error


DATASETS.register("stdlib")(
    Source(
        stdlib, "embedded", "the sources of Python's standard library", ("module",),
        "11 MB", "PSF",
    )
)  # fmt: skip


def topics(max_samples: int, by: str = "topic") -> Documents:
    """Python's reference manual as ``help()`` prints it: one document and one group per topic.

    Half a megabyte of English prose, which is there also without sources.

    Raises:
        DataError: this Python has no manual.
    """
    del by
    try:
        known: dict[str, str] = import_module("pydoc_data.topics").topics
    except ModuleNotFoundError as error:
        raise DataError(
            "this Python has no pydoc_data.topics (some images strip it): install the standard "
            "library (Debian: libpython3-stdlib) or choose another dataset"
        ) from error
    names = sorted(known)
    return Documents([known[name] for name in names], names).thin(max_samples)


DATASETS.register("topics")(
    Source(
        topics, "embedded", "Python's reference manual as help() prints it", ("topic",),
        "0.5 MB", "PSF",
    )
)  # fmt: skip
