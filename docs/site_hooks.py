"""Hooks of the documentation site: what lies outside ``docs`` is named there, not linked."""

import re
from posixpath import dirname, join, normpath
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, source: str = "", **site: Any) -> str:  # noqa: ANN401
    """Replace links that leave ``docs`` by their text and the file's path.

    MkDocs calls this for each page with ``page``, ``config`` and ``files``. ``source`` is the
    page's path within ``docs``; it is the page's own if it is not given.
    """
    source = source or str(site["page"].file.src_uri)

    def named(match: re.Match[str]) -> str:
        target = normpath(join(dirname(source), match[2]))
        if target[:3] != "../":
            return match[0]
        path = target.removeprefix("../")
        return f"`{path}`" if match[1] == path else f"{match[1]} (`{path}`)"

    return LINK.sub(named, markdown)
