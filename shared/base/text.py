"""Text made safe: a peer's for terminals, logs and tables, this machine's paths for others.

A name or an error's reason comes from another machine. ``ESC c`` would reset a terminal, a new line
would forge a line of a log, and ``=cmd|…`` would be a formula in a spreadsheet. Whatever of a peer
leaves the ledger or enters a log goes through these functions.
"""

import logging
import shlex
from pathlib import Path

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet may take for a formula's start
LINES = frozenset("\n\t")  # what a text of several lines keeps
QUOTE = "'"  # before a cell, it says that the cell is text


def escape_text(text: str, keep: frozenset[str] = frozenset()) -> str:
    r"""The text with every character that cannot be printed as an escape: ``\x1b``, ``\n``.

    These are control characters, line breaks, marks that turn the direction of writing, and
    surrogates. What is printable stays, so that a second call changes nothing.

    Args:
        text: from anywhere.
        keep: characters that stay all the same.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def spreadsheet_cell(value: object) -> object:
    """A value of a CSV file that no spreadsheet takes for a formula; numbers stay as they are."""
    if not isinstance(value, str):
        return value
    text = escape_text(value)
    return QUOTE + text if value.startswith(FORMULA) else text


def portable(value: object) -> str:
    """A setting's value as another machine may know it: of an absolute path, the last part."""
    text = str(value)
    return Path(text).name if Path(text).is_absolute() else text


def quote_command(*words: object) -> str:
    """A command as one pastes it into a shell: paths with spaces stay whole."""
    return shlex.join(map(str, words))


def escape_record(record: logging.LogRecord) -> bool:
    """A filter for loggers: the message becomes one line of printable characters."""
    record.msg, record.args = escape_text(record.getMessage()), ()
    return True


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
