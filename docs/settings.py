"""Writes docs/reference/settings.md and the defaults in pyproject.toml from the declarations."""

from pathlib import Path

from dandelion.settings.reference import markdown, pyproject_table

ROOT = Path(__file__).resolve().parents[1]
PAGE, PYPROJECT = ROOT / "docs" / "reference" / "settings.md", ROOT / "pyproject.toml"


def main() -> None:
    """Bring both files up to date."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(markdown(), encoding="utf-8")
    PYPROJECT.write_text(pyproject_table(PYPROJECT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
