"""Conversations as tokens: by the chat template of the model's tokenizer, or in the plain form.

A template is Jinja2 that came with the model's files. transformers renders it in its sandbox
(``ImmutableSandboxedEnvironment``), without the Python objects of this process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from shared.base.errors import DataError
from shared.data.conversations import CONTENT, ROLE, Turn, exchange, plain_prompt
from shared.models.model import Tokenizer
from shared.models.tokenizers import HubTokenizer

Ids = NDArray[np.int64]
DATE = "26 Jul 2024"  # for templates that state today's: every site makes the same tokens
THOUGHT = "</think>"  # templates drop what stands before it in former turns
TEXT = "{text}"  # stands for a text in a prompt
SHOWN = 60  # characters of a text in a message


class ChatForm(Protocol):
    """How the turns of a conversation become the tokens of a prompt and of its response."""

    @property
    def identity(self) -> str:
        """A name of what it does, beside the tokenizer's."""

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a response."""

    @property
    def closing(self) -> int:
        """The token that ends the content of a response."""

    def frame(self, turns: Sequence[Turn]) -> tuple[Ids, ...]:
        """The tokens of ``prompt(turns)`` before, between and after the places of TEXT.

        Raises:
            DataError: the template does not take the turns.
        """

    def prompt(self, turns: Sequence[Turn]) -> Ids:
        """The tokens after which the model writes a response to ``turns``.

        Raises:
            DataError: the template does not take the turns.
        """

    def encode(self, turns: Sequence[Turn]) -> tuple[Ids, Ids]:
        """The tokens before the last turn's content, and those of the content and its end.

        Raises:
            DataError: the template does not take the turns.
        """


@dataclass(frozen=True)
class PlainForm:
    """``User: …`` and ``Assistant: …``, a line each, for tokenizers without a template."""

    tokenizer: Tokenizer
    identity: str = "plain"

    @property
    def ends(self) -> tuple[int, ...]:
        """The end-of-text token."""
        return (self.tokenizer.end,)

    @property
    def closing(self) -> int:
        """The end-of-text token."""
        return self.tokenizer.end

    def frame(self, turns: Sequence[Turn]) -> tuple[Ids, ...]:
        """The plain form of the turns, in parts."""
        return encode_pieces(self.tokenizer, plain_prompt(turns).split(TEXT))

    def prompt(self, turns: Sequence[Turn]) -> Ids:
        """The start token if the model expects one, the turns, and ``Assistant:``."""
        return np.concatenate([self.tokenizer.start, self.tokenizer.encode(plain_prompt(turns))])

    def encode(self, turns: Sequence[Turn]) -> tuple[Ids, Ids]:
        """The prompt, and the response after a space with the end-of-text token."""
        response = self.tokenizer.encode(f" {turns[-1][CONTENT].strip()}")
        return self.prompt(turns[:-1]), np.append(response, self.tokenizer.end)


@dataclass(frozen=True)
class TemplateForm:
    """The chat template of a tokenizer; special tokens spelt out in a turn are ordinary text."""

    tokenizer: HubTokenizer

    @cached_property
    def identity(self) -> str:
        """A hash of the template."""
        return xxhash.xxh3_64(str(self.tokenizer.inner.chat_template).encode()).hexdigest()

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """What the template writes after a response, and the end-of-text token."""
        return tuple(sorted({self.closing, self.tokenizer.end}))

    @cached_property
    def closing(self) -> int:
        """What the template writes after a response, or the end-of-text token."""
        _, response = self.encode(exchange("a", "b"))
        return int(response[-1])

    def frame(self, turns: Sequence[Turn]) -> tuple[Ids, ...]:
        """What the template makes of the turns and writes before a response, in parts."""
        pieces = self._render(turns, opens=True).split(TEXT)
        return tuple(self.tokenizer.encode_marked(piece) for piece in pieces)

    def prompt(self, turns: Sequence[Turn]) -> Ids:
        """The turns, and what the template writes before a response."""
        return self._tokens(self._render(turns, opens=True), turns)

    def encode(self, turns: Sequence[Turn]) -> tuple[Ids, Ids]:
        """The prompt, and what the template makes of the last turn, up to its last special token.

        If a template ends a response with no special token, the end-of-text token follows.
        """
        before, whole = self._render(turns[:-1], opens=True), self._render(turns)
        if not whole.startswith(before):  # what it writes before a response is not what it keeps
            before = whole[: whole.rindex(turns[-1][CONTENT].strip())]
        response = self._tokens(whole[len(before) :], turns[-1:])
        last = np.flatnonzero(np.isin(response, [*self.tokenizer.marks]))
        ended = response[: last[-1] + 1] if len(last) else np.append(response, self.tokenizer.end)
        return self._tokens(before, turns[:-1]), ended

    def _render(self, turns: Sequence[Turn], opens: bool = False) -> str:
        """The text of turns, each of whose contents must stand in it.

        Raises:
            DataError: the template raises, or leaves a turn out.
        """
        inner: Any = self.tokenizer.inner
        plain = [dict(turn) for turn in turns]
        try:
            text = str(
                inner.apply_chat_template(
                    plain, tokenize=False, add_generation_prompt=opens, date_string=DATE
                )
            )
        except Exception as error:  # whatever a template of somebody's model raises
            roles = ", ".join(turn[ROLE] for turn in turns)
            raise DataError(
                f"the chat template of the tokenizer takes no conversation of roles {roles}: "
                f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; change "
                f"the turns (the first is {turns[0][CONTENT]!r:.{SHOWN}}), or the template"
            ) from error
        for turn in turns:
            if turn[CONTENT].rpartition(THOUGHT)[2].strip() not in text:
                raise DataError(
                    f"the chat template of the tokenizer leaves out a turn of role {turn[ROLE]!r}: "
                    f"{turn[CONTENT]!r:.{SHOWN}}; use roles that it takes, or another template"
                )
        return text

    def _tokens(self, text: str, turns: Sequence[Turn]) -> Ids:
        """The tokens of a rendered text; special tokens only where the template wrote them."""
        marks = self.tokenizer.marks.values()
        contents = [turn[CONTENT].strip() for turn in turns]
        if not any(mark in content for mark in marks for content in contents):
            return self.tokenizer.encode_marked(text)
        parts, rest = [], text
        for content in contents:
            before, there, after = rest.partition(content)
            if there:
                parts += [self.tokenizer.encode_marked(before), self.tokenizer.encode(content)]
                rest = after
        return np.concatenate([*parts, self.tokenizer.encode_marked(rest)])


def encode_pieces(tokenizer: Tokenizer, pieces: Sequence[str]) -> tuple[Ids, ...]:
    """The tokens of each piece of a prompt; the model's start token goes before the first."""
    first, *rest = (tokenizer.encode(piece) for piece in pieces)
    return np.concatenate([tokenizer.start, first]), *rest


def chat_form(tokenizer: Tokenizer) -> ChatForm:
    """The form of a tokenizer's conversations: its own template, if it has one."""
    if isinstance(tokenizer, HubTokenizer) and tokenizer.inner.chat_template:
        return TemplateForm(tokenizer)
    return PlainForm(tokenizer)
