"""Writes the reference page of the Python API from the docstrings of what ``dandelion`` offers.

``python -m docs.python_api`` prints the page; with ``--write`` it replaces
docs/reference/python-api.md. The names are those of ``dandelion.__all__``.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import dandelion

PAGE = Path(__file__).resolve().parent / "reference" / "python-api.md"
PREAMBLE = """# Python API

This page is generated from docstrings by `make reference`. `import dandelion` is the only
documented import. `server`, `client` and `shared` are internal.
"""
HEADINGS = ("Args", "Returns", "Raises", "Yields", "Example", "Examples", "Attributes")
SECTION = re.compile(rf"^({'|'.join(HEADINGS)}):[ \t]*\n", re.M)
UNQUOTED = re.compile(r": '([^']*)'")  # a type that is imported for type checkers only
ITEM = re.compile(r"^(\*{0,2}[\w., ]+?): ", re.M)


def page(package: ModuleType = dandelion) -> str:
    """The page: one section per public name; a class has one below for each of its members."""
    names = [name for name in getattr(package, "__all__", []) if name != "__version__"]
    parts = [PREAMBLE, f"\n{markdown(inspect.getdoc(package) or '')}"]
    for name in sorted(names, key=lambda name: (not name[0].islower(), name)):
        parts += _section(f"dandelion.{name}", getattr(package, name), "##")
    return "".join(parts)


def markdown(docstring: str) -> str:
    """A docstring of Google's style as markdown: lists as lists, examples as code.

    Backticks are doubled in docstrings, and single in markdown.
    """
    pieces = SECTION.split(docstring.strip())
    parts = [_prose(pieces[0])]
    for heading, body in zip(pieces[1::2], pieces[2::2], strict=True):
        text, after = _cut_off(body)
        if heading.startswith("Example"):
            parts.append(f"```python\n{dedent(text).strip()}\n```")
        else:
            items = re.sub(r"\n {4,}", " ", f"\n{dedent(text).strip()}").strip()
            lines = ["- " + ITEM.sub(r"`\1`: ", line) for line in items.splitlines() if line]
            parts.append("\n".join([f"{heading}:\n", *map(_ticks, lines)]))
        parts.append(_prose(after))
    return "\n\n".join(filter(None, parts)) + "\n"


def _cut_off(body: str) -> tuple[str, str]:
    """What is indented at the start of a section's body, and the text after it."""
    match = re.search(r"^\S", body, re.M)
    at = match.start() if match else len(body)
    return body[:at], body[at:]


def _prose(text: str) -> str:
    """Paragraphs; indented ones are code."""
    parts = []
    for paragraph in filter(None, re.split(r"\n\s*\n(?=\S)", text.strip())):
        if re.match(r" {4}", paragraph.partition("\n")[2] or "") and "\n\n" in paragraph:
            head, _, code = paragraph.partition("\n\n")
            parts += [_ticks(head), f"```python\n{dedent(code).strip()}\n```"]
        else:
            parts.append(_ticks(paragraph))
    return "\n\n".join(parts)


def _ticks(text: str) -> str:
    return text.replace("``", "`")


def _section(name: str, target: object, level: str) -> Iterator[str]:
    if isinstance(target, property):
        yield f"\n{level} {name}\n\n{markdown(inspect.getdoc(target) or '')}"
        return
    yield f"\n{level} {name}\n\n"
    if callable(target) and not _is_error(target):
        yield f"```python\n{name.rpartition('.')[2]}{_signature(target)}\n```\n\n"
    yield markdown(inspect.getdoc(target) or "")
    if isinstance(target, type) and not _is_error(target):
        for member, value in vars(target).items():
            if not member.startswith("_") and _is_member(value) and inspect.getdoc(value):
                own = getattr(value, "__func__", value)
                yield from _section(f"{target.__name__}.{member}", own, "###")


def _is_error(target: object) -> bool:
    return isinstance(target, type) and issubclass(target, BaseException)


def _is_member(value: object) -> bool:
    return inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)


def _signature(target: object) -> str:
    """The parameters, one per line if they are many; quotes around types are left out."""
    signature = inspect.signature(target)  # type: ignore[arg-type]
    texts = []
    for each in signature.parameters.values():
        if each.kind is each.KEYWORD_ONLY and "*" not in texts:
            texts.append("*")
        texts.append(
            re.sub(r"(?:collections\.abc|pathlib)\.", "", UNQUOTED.sub(r": \1", str(each)))
        )
    texts = [text for text in texts if text != "self"]
    returns = signature.return_annotation
    shown = getattr(returns, "__name__", None) or str(returns).strip("'\"")
    arrow = "" if returns is inspect.Signature.empty else f" -> {shown}"
    joined = ", ".join(texts)
    if len(joined) > 80:
        joined = "\n    " + ",\n    ".join(texts) + ",\n"
    return f"({joined}){arrow}"


def main() -> None:
    """Print the page, or write it to its place."""
    if sys.argv[1:] != ["--write"]:
        sys.stdout.write(page())
        return
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
