"""The source files of one's own problem: where they lie, and the digest that all sites share.

Nothing here imports the user's module, nor torch: a ClientApp lives for one message.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import sha256
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from shared.base.errors import ConfigError
from shared.base.files import code_digest


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
    files: dict[str, Path] = {}
    for root in _roots(module):
        paths = root.rglob("*.py") if root.is_dir() else _with_neighbours(root)
        files |= {path.relative_to(root.parent).as_posix(): path for path in paths}
    return files


def _roots(module: str) -> list[Path]:
    """The file or the folders of the top-level module that a dotted name begins with.

    Raises:
        ConfigError: there is none, or it has no source file.
    """
    top = module.partition(".")[0]
    try:
        spec: ModuleSpec | None = find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise ConfigError(
            f"app: a module that can be imported here expected, got {module!r}: install its "
            "package, set app-dir to the folder that it lies in (at a site: --app-dir of "
            "'dandelion client join'), or add that folder to PYTHONPATH"
        )
    folders = [Path(each).resolve() for each in spec.submodule_search_locations or ()]
    file = Path(spec.origin).resolve() if spec.origin and not folders else None
    roots = folders if file is None else [file]
    if not roots or (file is not None and file.suffix != ".py"):
        raise ConfigError(f"app: a module with a source file expected, got {top!r}")
    return roots


def _with_neighbours(file: Path) -> Iterable[Path]:
    """A file, and those of its folder that it imports; of a package all files."""
    seen: dict[Path, None] = {}
    queue = [file]
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        if path.is_dir():
            seen |= dict.fromkeys(path.rglob("*.py"))
            continue
        seen[path] = None
        queue += _neighbours(path, file.parent)
    return [path for path in seen if path.suffix == ".py"]


def _neighbours(path: Path, folder: Path) -> Iterator[Path]:
    for name in _names_of_imports(path):
        for candidate in (folder / f"{name}.py", folder / name):
            if candidate.is_file() or (candidate / "__init__.py").is_file():
                yield candidate


def _names_of_imports(path: Path) -> set[str]:
    """The top-level names that a file imports, wherever in it; none if it is no Python."""
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (SyntaxError, ValueError):
        return set()
    names = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names} - {""}
