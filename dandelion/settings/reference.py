"""Every setting as its declaration has it: for the command line, the documentation and Flower."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from inspect import getdoc

from shared.base.options import Option, Value, options_of
from shared.config.schema import ALIASES, Config, sections, to_toml
from shared.training.components import component_options, list_options

TITLE = "# Settings\n"
INTRODUCTION = """
This page is generated from the declarations (`make settings`). A setting is given as
`--set key=value`, in a TOML file (`--config`), as a keyword in Python, or in Flower's run config.
Keys are unique, so `eps`, `zo.eps` and a table `[zo]` with `eps` in a TOML file are the same;
underscores are taken for hyphens. *Resumable* settings may change when a run is resumed; a change
of any other would make another run of it.
"""
ANY_INTEGER = "from 0 to below 2**30"
OPTIONS = "Options of components"
OPTIONS_TEXT = """Options belong to the component that declares them. One that is not given has that
component's own default; one that the chosen component does not declare is refused."""


@dataclass(frozen=True)
class Group:
    """Settings under one heading."""

    title: str
    text: str
    options: list[Option]


def groups(word: str = "") -> Iterator[Group]:
    """The sections, then the options of components: those whose key or meaning has ``word``."""
    for name, section in sections().items():
        group = Group(name, getdoc(section) or "", list(options_of(section).values()))
        yield from _matching(group, word)
    yield from _matching(Group(OPTIONS, OPTIONS_TEXT, _list_shared_options()), word)


def _matching(group: Group, word: str) -> Iterator[Group]:
    wanted = word.lower().replace("_", "-")
    begins = re.compile(rf"\b{re.escape(wanted)}|\b{re.escape(word.lower())}")  # a word of it
    options = [
        each
        for each in group.options
        if begins.search(f"{each.key} {each.meaning}".lower()) or wanted in ("", group.title)
    ]
    if options:
        yield replace(group, options=options)


def _list_shared_options() -> list[Option]:
    """Options of components; those that several declare alike are one, used by all of these."""
    users: dict[Option, list[str]] = {}
    for kind, name, each in list_options():
        users.setdefault(each, []).append(f"{kind} {name}")
    return [replace(each, used_by=", ".join(names)) for each, names in users.items()]


def facts(each: Option) -> str:
    """Unit, range, resumability and use of a setting in a few words."""
    words = [
        each.unit and f"unit: {each.unit}",
        _range(each),
        each.used_by and f"used by: {each.used_by}",
        "resumable" if each.resumable else "",
    ]
    return "; ".join(filter(None, words))


def _range(each: Option) -> str:
    """The range in words; limits that are any integer's go without saying."""
    return "" if each.range == ANY_INTEGER else each.range.removesuffix(" to below 2**30")


def toml_of(value: Value) -> str:
    """A default as TOML writes it."""
    return to_toml({"": value}).removeprefix(" = ").strip()


def markdown() -> str:
    """The page of all settings."""
    parts = [TITLE, INTRODUCTION]
    for group in groups():
        parts.append(f"\n## {group.title}\n\n{' '.join(group.text.split())}\n\n")
        parts.append("| key | default | meaning | values and use |\n|---|---|---|---|\n")
        parts += map(_row, group.options)
    former = ", ".join(
        f"`{key}` (now {' and '.join(f'`{k}`' for k in keys)})" for key, keys in ALIASES.items()
    )
    parts.append(f"\nFormer keys are still read: {former}.\n")
    return "".join(parts)


def _row(each: Option) -> str:
    cells = [
        f"`{each.key}`",
        f"`{toml_of(each.default)}`",
        _cell(each.meaning),
        _cell(facts(each)),
    ]
    return f"| {' | '.join(cells)} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("**", "^")


def run_config() -> dict[str, Value]:
    """What Flower's run config holds: every key and its default.

    Flower overrides only keys that are there. An option of a component is empty there, which means
    that component's own default.
    """
    return {**Config().to_run_config(), **dict.fromkeys(component_options(), "")}


def pyproject_table(text: str) -> str:
    """The text of ``pyproject.toml`` with its table of defaults brought up to date."""
    start = text.index("[tool.flwr.app.config]")
    first = text.index("\n", start) + 1
    after = text.find("\n[", first)
    rest = text[after:] if after >= 0 else ""
    return text[:first] + to_toml(run_config()) + rest
