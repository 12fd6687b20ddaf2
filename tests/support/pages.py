"""The documentation as data: pages, headings, links, paths, commands and settings in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
NAMED = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "deploy/README.md",
    "examples/README.md",
)
PAGES = [*NAMED, *(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("docs/**/*.md")))]
GENERATED = (
    "docs/reference/cli.md",
    "docs/reference/files.md",
    "docs/reference/python-api.md",
    "docs/reference/settings.md",
)
FENCE, CODE = (
    re.compile(r"^```[^\n]*\n(.*?)^```", re.M | re.S),
    re.compile(r"(?<!`)`([^`\n]+)`(?!`)"),
)
LINK, HEADING = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)"), re.compile(r"^#{1,6} +(.+?)\s*$", re.M)
OURS = re.compile(r"(?:server|client|shared|dandelion|deploy|docs|tests|examples)/[\w./@*-]*")
COMMAND = re.compile(r"(?:^|bin/)dandelion (?=[a-z])(.*)")
WORDS = re.compile(  # of a command, up to a comment or the shell's own words outside quotes
    r"""(?:"[^"]*"|'[^']*'|(?!\s(?:\#|\||&&|;)(?:\s|$)).)*"""
)


class Command(NamedTuple):
    """A ``dandelion`` command line of a page."""

    words: tuple[str, ...]  # after ``dandelion``

    @property
    def text(self) -> str:
        """The command as one would type it."""
        return shlex.join(("dandelion", *self.words))

    def values(self, option: str) -> Iterator[tuple[str, str]]:
        """Key and value of each ``option key=value``."""
        for word, value in zip(self.words, self.words[1:], strict=False):
            if word == option:
                yield value.partition("=")[0], value.partition("=")[2]


def text_of(page: str) -> str:
    """The source of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[str]:
    """The contents of the fenced blocks of a page."""
    return FENCE.findall(text_of(page))


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text_of(page))


def links(page: str) -> list[str]:
    """The targets of a page's links that are not addresses of the web."""
    targets = LINK.findall(CODE.sub("", prose(page)))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as repositories and the site name them."""
    titles = HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def paths(page: str) -> list[str]:
    """What stands in backticks and reads like a file or a folder of this repository."""
    return [code for code in CODE.findall(prose(page)) if OURS.fullmatch(code)]


def commands(page: str) -> list[Command]:
    """The ``dandelion`` commands of a page, in blocks and in backticks."""
    lines = [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
    matches = (COMMAND.search(line.strip()) for line in [*lines, *CODE.findall(prose(page))])
    texts = [WORDS.match(match.group(1))[0] for match in matches if match]
    return [Command(tuple(shlex.split(text))) for text in texts]
