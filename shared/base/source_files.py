"""The ``.py`` files that a module stands for, found without an import of it.

Of a package they are all its files. Of a module that is a single file they are that file and those
beside it that it imports, directly or through each other.
"""

import ast
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path


def find_roots(module: str) -> list[Path]:
    """The file or the folders of the top-level module that a dotted name begins with.

    Returns:
        Nothing if there is no such module; what is no ``.py`` file has no source.
    """
    try:
        spec: ModuleSpec | None = find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return []
    folders = [Path(each).resolve() for each in spec.submodule_search_locations or ()]
    return folders or ([Path(spec.origin).resolve()] if spec.origin else [])


def list_sources(roots: Iterable[Path]) -> dict[str, Path]:
    """The ``.py`` files of some roots, by their names from where Python finds them."""
    files: dict[str, Path] = {}
    for root in roots:
        paths = root.rglob("*.py") if root.is_dir() else _with_neighbours(root)
        files |= {path.relative_to(root.parent).as_posix(): path for path in paths}
    return files


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
