"""Conversations: the turns of prompt and response, from columns of a table or chat messages.

A conversation is a list of turns, each with a role and a content; its last turn is the assistant's,
which is the response. Rows of the forms of Alpaca (instruction, input, output), of OpenAI
(``messages``) and of ShareGPT (``conversations`` with ``from`` and ``value``) are all read as such.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.base.errors import ConfigError, DataError

LOG = logging.getLogger("dandelion")
Turn = Mapping[str, str]  # role, content

ROLE, CONTENT = "role", "content"
USER, ASSISTANT = "user", "assistant"
MESSAGES = ("messages", "conversations", "conversation")
PROMPTS = (("instruction", "input"), ("instruction",), ("prompt",), ("question",), ("query",))
RESPONSES = ("response", "output", "answer", "completion")
SPEECH = {*MESSAGES, *RESPONSES}  # a table with one of these may hold conversations
ROLES = {"human": USER, **dict.fromkeys(("gpt", "bot", "model"), ASSISTANT)}  # others' names
NAMES = {"system": "System", USER: "User", ASSISTANT: "Assistant"}  # in the plain form


@dataclass(frozen=True)
class SpeechColumns:
    """Which columns are the conversation: a prompt's and a response, or messages alone."""

    prompt: tuple[str, ...]  # none: the response column holds messages
    response: str

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [*self.prompt, self.response]


def speech_columns(
    columns: Sequence[str], name: str, prompt: str = "", response: str = ""
) -> SpeechColumns:
    """The columns of conversations: those given, or by the names that are known.

    Args:
        columns: of the table.
        name: of the data set, for messages.
        prompt: given names, with commas; empty: known names.
        response: a given name; empty: known names.

    Raises:
        ConfigError: a given one is not there.
        DataError: there is no response, or no prompt.
    """
    listed = ", ".join(columns)
    chosen = tuple(each.strip() for each in prompt.split(",") if each.strip())
    for key, names in (("prompt-column", chosen), ("response-column", (response,))):
        if missing := [each for each in names if each and each not in columns]:
            raise ConfigError(f"{key}: {name} has columns {listed}, got {missing[0]!r}")
    if not chosen:
        known = (response,) if response else MESSAGES
        if messages := next((each for each in known if each in columns and each in MESSAGES), ""):
            return SpeechColumns((), messages)
    response = response or next((each for each in RESPONSES if each in columns), "")
    if not response:
        raise DataError(
            f"{name}: a column of responses ({', '.join(RESPONSES)}) or of messages "
            f"({', '.join(MESSAGES)}) expected, got {listed}; set response-column"
        )
    chosen = chosen or next((each for each in PROMPTS if set(each) <= set(columns)), ())
    if not chosen or response in chosen:
        known_prompts = ", ".join(" + ".join(each) for each in PROMPTS)
        raise DataError(
            f"{name}: a column of prompts ({known_prompts}) expected beside {response!r}, got "
            f"{listed}; set prompt-column"
        )
    return SpeechColumns(chosen, response)


def conversations_of(dataset: Any, columns: SpeechColumns, name: str) -> list[str]:  # noqa: ANN401
    """The conversation of each row as JSON; empty if the row has no prompt or no response.

    Turns after the last one of the assistant are dropped. Rows that have no prompt or no response
    are counted in the log.

    Raises:
        DataError: no row has both, or a message is none; names the row.
    """
    rows = dataset.select_columns(columns.names)
    texts = [_conversation(row, columns, f"{name}, row {n}") for n, row in enumerate(rows, 1)]
    if not any(texts):
        what = "messages with a turn of the assistant after another" if not columns.prompt else (
            f"a prompt in {' + '.join(columns.prompt)} and a response in {columns.response!r}"
        )  # fmt: skip
        raise DataError(f"{name}: {what} expected, none of {len(texts)} rows has it")
    if missing := [row for row, text in enumerate(texts, 1) if not text]:
        LOG.warning(
            "%s: %d of %d rows have no prompt or no response and are left out, the first is row %d",
            name, len(missing), len(texts), missing[0],
        )  # fmt: skip
    return texts


def turns_of(text: str) -> list[Turn]:
    """The turns of a conversation that is JSON."""
    turns: list[Turn] = json.loads(text)
    return turns


def to_json(turns: Sequence[Turn]) -> str:
    """A conversation as JSON, the same for equal turns."""
    return json.dumps([dict(turn) for turn in turns], ensure_ascii=False, sort_keys=True)


def exchange(prompt: str, response: str) -> list[Turn]:
    """The conversation of one prompt and its response."""
    return [{ROLE: USER, CONTENT: prompt}, {ROLE: ASSISTANT, CONTENT: response}]


def plain_prompt(turns: Sequence[Turn]) -> str:
    """The plain form of turns before a response: ``User: …``, a line each, and ``Assistant:``."""
    lines = [f"{NAMES.get(turn[ROLE], turn[ROLE])}: {turn[CONTENT]}\n" for turn in turns]
    return f"{''.join(lines)}{NAMES[ASSISTANT]}:"


def plain_text(text: str) -> str:
    """The plain form of a whole conversation that is JSON; empty for an empty one."""
    if not text:
        return ""
    *before, last = turns_of(text)
    return f"{plain_prompt(before)} {last[CONTENT]}"


def _conversation(row: Mapping[str, Any], columns: SpeechColumns, where: str) -> str:
    if not columns.prompt:
        turns = _messages(row[columns.response], where)
        while turns and turns[-1][ROLE] != ASSISTANT:
            turns.pop()
    else:
        parts = [_text(row[each], where) for each in columns.prompt]
        prompt = "\n".join(part for part in parts if part)
        turns = exchange(prompt, _text(row[columns.response], where)) if prompt.strip() else []
    if len(turns) < 2 or not turns[-1][CONTENT].strip():
        return ""
    return to_json(turns)


def _messages(cell: object, where: str) -> list[Turn]:
    """The turns of a cell: a list of messages, or JSON of such a list; roles by our names."""
    try:
        listed = json.loads(cell) if isinstance(cell, str) else cell
    except ValueError as error:
        raise DataError(f"{where}: messages as JSON expected, got {cell!r:.60}") from error
    if not isinstance(listed, list):
        if listed is None:
            return []
        raise DataError(f"{where}: a list of messages expected, got {type(listed).__name__}")
    return [_turn(message, where) for message in listed]


def _turn(message: object, where: str) -> Turn:
    if isinstance(message, Mapping):
        role = message.get(ROLE) or message.get("from")
        content = message.get(CONTENT) if message.get(ROLE) else message.get("value")
        if isinstance(role, str):
            role = role.strip().lower()
            return {ROLE: ROLES.get(role, role), CONTENT: _text(content, where)}
    raise DataError(
        f"{where}: messages with role and content, or from and value, expected, got {message!r:.60}"
    )


def _text(cell: object, where: str) -> str:
    """A cell as text: itself, the texts of a message's parts, or the first of several answers.

    Raises:
        DataError: it is something else.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""  # a column of numbers has NaN where a cell is empty
    if isinstance(cell, list) and all(isinstance(part, Mapping) for part in cell):
        texts = [part.get("text") for part in cell]
        if all(isinstance(text, str) for text in texts):
            return "\n".join(texts)
    elif isinstance(cell, list):
        return _text(cell[0], where) if cell else ""
    if isinstance(cell, str | int | float):
        return str(cell)
    raise DataError(f"{where}: a text expected, got {type(cell).__name__} {cell!r:.60}")
