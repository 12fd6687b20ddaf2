"""Where compiled kernels are kept: in the user's cache, by the content of what they are made of.

Flower unpacks an app anew for each simulation, and numba keeps what it has compiled beside a file,
or by a file's path. So every simulation compiled all kernels again, some fifteen seconds of a core.
Here the folder is named after the sources and the compiler alone: a kernel is compiled once on a
machine, whatever folder its source lies in. Numba itself tells processors apart.

What is kept is loaded as code. So the folder must be the user's own, and nobody else may write to
it; if there is no such folder, kernels are kept beside their sources, as numba does by itself.
"""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import llvmlite
import numba

from shared.base import flat
from shared.base.files import cache_folder
from shared.randomness import philox

KERNELS = "kernels"  # folder in the cache
UNUSED_DAYS = 60  # a folder of a former version that nobody has used for so long is removed
DAY_S = 86_400
LOCATORS = "CACHE_LOCATOR_CLASSES"  # a setting of numba; older versions do not have it


@contextmanager
def keep_kernels(file: Path) -> Iterator[None]:
    """Within it, what is compiled of a module is kept, and found again.

    A folder that the user names (NUMBA_CACHE_DIR) takes the place of ours.
    """
    config: Any = numba.config
    if config.CACHE_DIR or not file.is_file():  # such as code that was typed in
        yield
        return
    if getattr(config, LOCATORS, None) == "":  # numba has this setting, and its user none
        locator = f"{__name__}.{KernelLocator.__name__}"
        changed = {LOCATORS: locator, "CACHE_DIR": str(kernel_folder(file.parent))}
    else:
        changed = {"CACHE_DIR": str(beside(file.parent))}
    before = {name: getattr(config, name) for name in changed}
    try:
        _set(changed)
        yield
    finally:
        _set(before)


class KernelLocator:
    """Numba's question where a function's machine code is; the answer does not name its file."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        self._name = f"{Path(file).stem}-{function.__code__.co_firstlineno}"

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> Self | None:
        """The locator of a function; None, so that numba looks further, if nothing can be kept."""
        locator = cls(function, file)
        try:
            locator.ensure_cache_path()
        except OSError:
            return None
        return locator

    def ensure_cache_path(self) -> None:
        """Raise OSError if nothing can be written."""
        os.makedirs(self.get_cache_path(), exist_ok=True)
        tempfile.TemporaryFile(dir=self.get_cache_path()).close()

    def get_cache_path(self) -> str:
        """The folder."""
        return str(numba.config.CACHE_DIR)

    def get_source_stamp(self) -> str:
        """What must be the same: the folder's name says it already."""
        return Path(self.get_cache_path()).name

    def get_disambiguator(self) -> str:
        """What tells functions of one name apart."""
        return self._name


@cache
def kernel_folder(sources: Path) -> Path:
    """The folder of what is compiled of the modules here and in a folder.

    It is in the user's cache if that is the user's own, and else beside the sources.
    """
    try:
        root = cache_folder() / KERNELS
        folder = root / beside(sources).name
        is_new = not folder.is_dir()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if not (_is_own(root) and _is_own(folder)):
            return beside(sources)
        os.utime(folder)
    except (OSError, RuntimeError):  # the second: a user without a home
        return beside(sources)
    if is_new:
        _remove_unused(root)
    return folder


@cache
def beside(sources: Path) -> Path:
    """The folder beside the sources; its name is a digest of them and of the compiler.

    They are the modules here but this one, those of folder ``sources``, and two that have what
    kernels share.
    """
    own = Path(__file__).parent
    paths = [path for folder in sorted({own, sources}) for path in sorted(folder.glob("*.py"))]
    compiled = [path for path in paths if path.name != Path(__file__).name]
    every = [*compiled, Path(flat.__file__), Path(philox.__file__)]
    digest = sha256(f"numba {numba.__version__}, llvmlite {llvmlite.__version__}".encode())
    for path in every:
        digest.update(sha256(path.read_bytes()).digest())
    return sources / "__pycache__" / digest.hexdigest()[:16]


def _is_own(folder: Path) -> bool:
    """Whether a folder is this user's, and nobody else may write to it."""
    status = folder.lstat()
    writable = stat.S_IWGRP | stat.S_IWOTH
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & writable
    )


def _remove_unused(root: Path) -> None:
    oldest = time.time() - UNUSED_DAYS * DAY_S
    for folder in root.iterdir():
        if folder.stat().st_mtime < oldest:
            shutil.rmtree(folder, ignore_errors=True)


def _set(changes: dict[str, str]) -> None:
    for name, value in changes.items():
        setattr(numba.config, name, value)
