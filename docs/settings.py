"""Writes docs/reference/settings.md and the defaults in pyproject.toml from the declarations."""

from pathlib import Path

from dandelion.settings.reference import markdown, pyproject_table

ROOT = Path(__file__).resolve().parents[1]
PAGE, PYPROJECT = ROOT / "docs" / "reference" / "settings.md", ROOT / "pyproject.toml"


def main() -> None:
    """Bring both files up to date.

    A file that is up to date is not touched: make installs anew whatever is older than
    pyproject.toml, and mypy and ruff may be reading it.
    """
    PAGE.parent.mkdir(exist_ok=True)
    for path, text in (
        (PAGE, markdown()),
        (PYPROJECT, pyproject_table(PYPROJECT.read_text(encoding="utf-8"))),
    ):
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
