"""The README's file map: every module beside the first line of its docstring.

``python docs/file_map.py`` prints it; with ``--write`` it takes the old one's place in README.md.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("server", "client", "shared", "dandelion")
FENCE = "```"


def modules(root: Path = ROOT) -> list[Path]:
    """All modules of the packages, sorted by path, each package's own first."""
    return [
        path.relative_to(root)
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"), key=_order)
    ]


def purpose(path: Path) -> str:
    """The first line of a module's docstring; empty where it has none."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def file_map(root: Path = ROOT) -> list[str]:
    """One line per module: its path, padded, and its purpose."""
    paths = modules(root)
    width = max(len(str(path)) for path in paths)
    return [f"{path!s:<{width}}  {purpose(root / path)}".rstrip() for path in paths]


def mapped(readme: str) -> list[str]:
    """The lines of the README's fenced block that begins with our first module; none without."""
    inside, block = False, list[str]()
    for line in readme.splitlines():
        if line.startswith(FENCE):
            if inside and block and block[0].startswith(f"{PACKAGES[0]}/"):
                return block
            inside, block = not inside, []
        elif inside:
            block.append(line)
    return []


def _order(path: Path) -> tuple[str, bool, str]:
    return str(path.parent), path.name != "__init__.py", path.name


def main() -> None:
    """Print the map, or write it into README.md."""
    lines = file_map()
    if sys.argv[1:] != ["--write"]:
        sys.stdout.write("\n".join(lines) + "\n")
        return
    readme = ROOT / "README.md"
    text, old = readme.read_text(), "\n".join(mapped(readme.read_text()))
    if not old:
        raise SystemExit(
            f"{readme}: no block that begins with {PACKAGES[0]}/ between {FENCE} lines"
        )
    readme.write_text(text.replace(old, "\n".join(lines)))


if __name__ == "__main__":
    main()
