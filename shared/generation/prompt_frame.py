"""What stands around a text that is asked about: a prompt as it is, or the turns of a chat.

A prompt may name the text twice. A causal model reads the second copy with all of the first in
view (Springer et al. 2024, https://arxiv.org/abs/2402.15449).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ConfigError, DataError
from shared.data.conversations import ASSISTANT, CONTENT, ROLE, USER, Turn
from shared.generation.chat import TEXT, ChatForm, chat_form, encode_pieces
from shared.models.model import Tokenizer

CHAT = "chat"  # of the setting prompt-form
TURN = re.compile(r"(?:^|\|)\s*(system|user|assistant):\s*")
EXAMPLE = "system: You judge films. | user: {text} | assistant: It was"
Ids = NDArray[np.int64]


class PromptFrame(Protocol):
    """The tokens around a text, and those of a label that follows."""

    @property
    def around(self) -> tuple[Ids, ...]:
        """What the model reads before a text, between its copies, and after it up to a label."""

    @property
    def end(self) -> int:
        """The token that ends a label."""

    def label(self, text: str) -> tuple[int, ...]:
        """The tokens of a label of one or several words.

        Raises:
            ConfigError: the tokenizer joins the label with what it follows.
        """


@dataclass(frozen=True)
class PlainFrame:
    """A prompt as it stands; the token that the model expects at the start goes before it."""

    tokenizer: Tokenizer
    around: tuple[Ids, ...]
    ending: str

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompt: str) -> "PlainFrame":
        """Make it from a prompt with ``{text}`` in it."""
        pieces = prompt.split(TEXT)
        around = encode_pieces(tokenizer, pieces)
        return cls(tokenizer, around, pieces[-1])

    @property
    def end(self) -> int:
        """The end-of-text token."""
        return self.tokenizer.end

    def label(self, text: str) -> tuple[int, ...]:
        """The tokens of a label, which follows the prompt after a space."""
        space = "" if self.ending[-1:].isspace() else " "
        whole = self.tokenizer.encode(f"{self.ending}{space}{text}")
        return _rest(whole, self.around[-1], text, self.ending)


@dataclass(frozen=True)
class ChatFrame:
    """Turns by the model's chat template; a label is, or ends, the turn of the assistant."""

    form: ChatForm
    turns: tuple[Turn, ...]  # before the assistant's
    lead: str  # what the assistant's turn begins with, before a label
    around: tuple[Ids, ...]
    opening: Ids  # the tokens of ``lead``

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompt: str) -> "ChatFrame":
        """Make it from turns with ``{text}`` in one of them.

        Raises:
            ConfigError: no turns that the template takes.
        """
        form, turns = chat_form(tokenizer), parse_turns(prompt)
        lead = turns.pop()[CONTENT].strip() if turns[-1][ROLE] == ASSISTANT else ""
        try:
            *first, last = form.frame(turns)
            opening = _without_ends(form, [*turns, _answer(lead)]) if lead else last[:0]
        except DataError as error:
            raise ConfigError(f"prompt {prompt!r}: {error}") from error
        around = (*first, np.concatenate([last, opening]))
        return cls(form, tuple(turns), lead, around, opening)

    @property
    def end(self) -> int:
        """What the template writes after a response."""
        return self.form.closing

    def label(self, text: str) -> tuple[int, ...]:
        """The tokens of a label, as the template writes it."""
        answer = _answer(f"{self.lead} {text}" if self.lead else text)
        whole = _without_ends(self.form, [*self.turns, answer])
        return _rest(whole, self.opening, text, self.lead)


def prompt_frame(tokenizer: Tokenizer, prompt: str, form: str) -> PromptFrame:
    """The frame of a prompt with ``{text}`` in it.

    Args:
        tokenizer: of the model.
        prompt: as it stands; of form ``chat``, turns as in ``EXAMPLE``, or the user's alone.
        form: text or chat.

    Raises:
        ConfigError: no ``{text}``, or turns that the model's template does not take.
    """
    if TEXT not in prompt:
        raise ConfigError(f"prompt: a text with {TEXT} in it expected, got {prompt!r}")
    if form == CHAT:
        return ChatFrame.of(tokenizer, prompt)
    return PlainFrame.of(tokenizer, prompt)


def parse_turns(prompt: str) -> list[Turn]:
    """The turns of a prompt: after ``system:``, ``user:`` or ``assistant:``, separated by |.

    Raises:
        ConfigError: something stands before the first role, or a turn is empty, or ``{text}``
            stands in the assistant's last one.
    """
    first, *rest = TURN.split(prompt)
    if not rest:
        return [{ROLE: USER, CONTENT: prompt}]
    turns: list[Turn] = [
        {ROLE: role, CONTENT: content.strip()}
        for role, content in zip(rest[::2], rest[1::2], strict=True)
    ]
    is_answer = turns[-1][ROLE] == ASSISTANT
    before = turns[:-1] if is_answer else turns
    if first.strip() or not all(turn[CONTENT] for turn in turns) or not _has_text(before):
        raise ConfigError(
            f"prompt-form = chat: a prompt of turns such as {EXAMPLE!r} expected, with {TEXT} "
            f"before the assistant's last one, got {prompt!r}"
        )
    return turns


def _has_text(turns: Sequence[Turn]) -> bool:
    return any(TEXT in turn[CONTENT] for turn in turns)


def _answer(text: str) -> Turn:
    return {ROLE: ASSISTANT, CONTENT: text}


def _without_ends(form: ChatForm, turns: Sequence[Turn]) -> Ids:
    """The tokens of the last turn's content, without what ends it."""
    _, response = form.encode(turns)
    is_end = np.isin(response, form.ends)
    return response[: len(response) - int(np.logical_and.accumulate(is_end[::-1]).sum())]


def _rest(whole: Ids, start: Ids, label: str, ending: str) -> tuple[int, ...]:
    """The tokens of ``whole`` after those of its beginning.

    Raises:
        ConfigError: it does not begin with them, or nothing follows.
    """
    if len(whole) <= len(start) or not np.array_equal(whole[: len(start)], start):
        raise ConfigError(
            f"label-words: {label!r} melts into the prompt's end {ending!r} when it is tokenised; "
            "end the prompt in a letter or a mark, without a space"
        )
    return tuple(whole[len(start) :].tolist())
