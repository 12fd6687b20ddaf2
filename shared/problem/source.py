"""The source files of one's own problem: where they lie, and the digest that all sites share.

Nothing here imports the user's module, nor torch: a ClientApp lives for one message.
"""

import sys
from functools import cache
from hashlib import sha256
from pathlib import Path

from shared.base.errors import ConfigError
from shared.base.files import code_digest
from shared.base.source_files import find_roots, list_sources


def use_folder(folder: str) -> None:
    """Have a folder searched for modules, after all others; nothing if it is searched already."""
    if folder and folder not in sys.path:
        sys.path.append(folder)


def source_digest(app: str, folder: str = "") -> bytes:
    """16 bytes over our source files and, if a run has a problem of its own, over that one's.

    Args:
        app: the setting ``app``, as ``module:attribute``; empty: ``code_digest()`` alone.
        folder: where its module may lie, beside the usual places.

    Raises:
        ConfigError: there is no such module.
    """
    if not app:
        return code_digest()
    use_folder(folder)
    return _digest(app.partition(":")[0])


def app_folder(app: str) -> Path:
    """The folder in which Python finds the module of a problem.

    Raises:
        ConfigError: there is no such module.
    """
    return _roots(app.partition(":")[0])[0].parent


@cache
def _digest(module: str) -> bytes:
    digest = sha256(code_digest())
    for name, path in sorted(source_files(module).items()):
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.digest()[:16]


def source_files(module: str) -> dict[str, Path]:
    """The ``.py`` files that a module belongs to, by their names from where Python finds them.

    They are all files of its package. Of a module that is a single file they are that file and
    those beside it that it imports, directly or through each other.

    Raises:
        ConfigError: there is no such module.
    """
    return list_sources(_roots(module))


def _roots(module: str) -> list[Path]:
    """The file or the folders of the top-level module that a dotted name begins with.

    Raises:
        ConfigError: there is none, or it has no source file.
    """
    roots = find_roots(module)
    if not roots:
        raise ConfigError(
            f"app: a module that can be imported here expected, got {module!r}: install its "
            "package, set app-dir to the folder that it lies in (at a site: --app-dir of "
            "'dandelion client join'), or add that folder to PYTHONPATH"
        )
    if roots[0].is_file() and roots[0].suffix != ".py":
        raise ConfigError(f"app: a module with a source file expected, got {module!r}")
    return roots
