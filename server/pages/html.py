"""HTML that is safe by construction: whatever is no ``Html`` is text and is escaped.

Names, errors and samples come from other machines. They reach a page through ``element`` alone, so
a site that calls itself ``<script>`` is shown with these letters. A page has no script at all and
forbids itself to load anything.
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.base.text import LINES, escape_text

STYLE = """
:root { color-scheme: light dark; --ink: #2b313a; --soft: #596372; --line: #d5dae1; --back: #fff;
  --panel: #f5f7f9; --sites: #5b7190; --held-out: #b3273b; --link: #1d5fa8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7ed; --soft: #a5b0bf; --line: #3b4451;
  --back: #15191f; --panel: #1e242c; --sites: #93abcb; --held-out: #ff7d8d; --link: #82b8f5; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  margin: 0 auto; max-width: 76rem; padding: 1rem; overflow-wrap: break-word; }
a { color: var(--link); }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.skip { position: absolute; left: -100rem; }
.skip:focus { position: static; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; padding: 0; }
.soft, caption, figcaption { color: var(--soft); }
dl.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr));
  gap: .6rem; }
dl.numbers > div { background: var(--panel); border-radius: .4rem; padding: .6rem .8rem; }
dl.numbers dt { color: var(--soft); font-size: .85rem; }
dl.numbers dd { margin: 0; font-size: 1.1rem; font-variant-numeric: tabular-nums; }
figure { margin: 0 0 1rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(21rem, 100%), 1fr));
  gap: 1rem; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--ink); font-size: 13px; }
.grid { stroke: var(--line); stroke-width: 1; }
.rewind { stroke: var(--soft); stroke-dasharray: 3 4; }
.curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.curve.sites { stroke: var(--sites); }
.curve.held-out { stroke: var(--held-out); }
circle.held-out { fill: var(--held-out); }
circle.sites { fill: var(--sites); }
.key::before { content: ""; display: inline-block; width: 1.4rem; height: .25rem;
  margin-right: .4rem; vertical-align: middle; background: var(--ink); }
.key.sites::before { background: var(--sites); }
.key.held-out::before { background: var(--held-out); }
.key { margin-right: 1.2rem; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; }
.wide:focus-visible, summary:focus-visible, a:focus-visible { outline: 3px solid var(--link); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .4rem .7rem; }
th, td { text-align: left; padding: .3rem .7rem; border-top: 1px solid var(--line);
  vertical-align: top; }
td:not(.number) { min-width: 6rem; }
th { font-weight: 600; overflow-wrap: normal; }
td.number, th.number { text-align: right; white-space: nowrap; overflow-wrap: normal; }
td code, dd code { overflow-wrap: anywhere; }
.bar { height: .8rem; min-width: 6rem; }
pre { background: var(--panel); padding: .8rem; border-radius: .4rem; white-space: pre-wrap; }
img.picture { max-width: 100%; background: #fff; border-radius: .4rem; }
summary { cursor: pointer; color: var(--link); }
@media print { details > * { display: block; } }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style></head>
<body>{body}</body></html>
"""


VOID = {"img"}  # elements without an end


class Html(str):
    """A piece of markup whose texts have been escaped; any other text has not."""

    __slots__ = ()


def markup(child: object) -> str:
    """Markup as it is; of anything else, its text: printable, and without a meaning in HTML."""
    return child if isinstance(child, Html) else html.escape(escape_text(str(child)))


def element(name: str, *children: object, **attributes: object) -> Html:
    """An element with its children; ``class_`` and ``aria_label`` mean what HTML calls so."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{markup(str(value))}"'
        for key, value in attributes.items()
    )
    if name in VOID:
        return Html(f"<{name}{words}>")
    return Html(f"<{name}{words}>{''.join(map(markup, children))}</{name}>")


def join(parts: Iterable[Html], between: str = "") -> Html:
    """Pieces one after another; ``between`` is text."""
    return Html(markup(between).join(parts))


def prose(text: str) -> Html:
    """A text of several lines, in its own lines."""
    lines = text.replace("\r\n", "\n")
    return element("pre", Html(html.escape(escape_text(lines, LINES))))


@dataclass(frozen=True)
class PagePart:
    """A part of a page under a heading, which links can name."""

    title: str
    body: Html

    @property
    def name(self) -> str:
        """What links call it."""
        return self.title.lower().replace(" ", "-")

    @property
    def html(self) -> Html:
        """The heading and what is under it."""
        heading = element("h2", self.title, id=self.name)
        return element("section", heading, self.body, aria_labelledby=self.name)


def part(title: str, *children: object) -> PagePart:
    """A part of a page, of its children."""
    return PagePart(title, Html("".join(map(markup, children))))


def table(
    caption: str, titles: Sequence[str], rows: Iterable[Sequence[object]], numbers: str = ""
) -> Html:
    """A table that scrolls sideways by itself, also by the keyboard.

    Args:
        caption: what it shows.
        titles: of the columns.
        rows: cells are texts or ``Html``; the first of each row is its heading.
        numbers: titles of the columns that are set flush right, with ``|`` between them.
    """
    kinds = [{"class_": "number"} if title in numbers.split("|") else {} for title in titles]
    header = join(
        element("th", t, scope="col", **kind) for t, kind in zip(titles, kinds, strict=True)
    )
    lines = [_row(row, kinds) for row in rows]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", header)),
        element("tbody", *lines),
    )
    return element("div", whole, class_="wide", tabindex="0", role="region", aria_label=caption)


def page(title: str, body: Html) -> str:
    """A whole page: one file that loads nothing."""
    return PAGE.format(title=markup(title), style=STYLE, body=body)


def _row(row: Sequence[object], kinds: Sequence[dict[str, str]]) -> Html:
    first, *others = row
    cells = [element("td", cell, **kind) for cell, kind in zip(others, kinds[1:], strict=True)]
    return element("tr", element("th", first, scope="row"), *cells)
