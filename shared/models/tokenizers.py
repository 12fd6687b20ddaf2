"""Tokenizers: bytes, which need no training, or any of Hugging Face's."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

NOTHING: NDArray[np.int64] = np.empty(0, np.int64)
PROBE = "a"  # a text, to see what is put before it


@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes after three special tokens, as ByT5 (Xue et al. 2022) without its sentinels.

    Encodes with numpy what ``transformers.ByT5Tokenizer(extra_ids=0)`` encodes byte by byte.
    """

    end: int = 1  # </s>; 2 is <unk>
    pad: int = 0
    size: int = 259
    identity: str = "bytes"

    @property
    def start(self) -> NDArray[np.int64]:
        """Nothing."""
        return NOTHING

    def encode(self, text: str) -> NDArray[np.int64]:
        """Tokens of a text; a lone surrogate, which is no text, becomes a question mark."""
        return np.frombuffer(text.encode("utf-8", "replace"), np.uint8) + np.int64(3)

    def sequence(self, text: str, most: int) -> NDArray[np.int64]:
        """Tokens of a text and the end-of-text token."""
        return np.append(self.encode(text)[: most - 1], self.end)

    def decode(self, tokens: NDArray[np.int64]) -> str:
        """Text of tokens; special tokens are left out, broken UTF-8 is replaced."""
        return (tokens[tokens > 2] - 3).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def save(self, folder: Path) -> None:
        """Write it as the ``ByT5Tokenizer`` that it equals."""
        from transformers import ByT5Tokenizer

        ByT5Tokenizer(extra_ids=0).save_pretrained(folder)


@dataclass(frozen=True)
class HubTokenizer:
    """A tokenizer of transformers under the contract of ``Tokenizer``."""

    inner: Any  # PreTrainedTokenizerBase
    end: int

    @property
    def pad(self) -> int:
        """Its own padding, or the end-of-text token."""
        pad = self.inner.pad_token_id
        return self.end if pad is None else int(pad)

    @property
    def size(self) -> int:
        """The number of tokens."""
        return len(self.inner)

    @cached_property
    def start(self) -> NDArray[np.int64]:
        """The begin-of-text token, if it puts this before a text; what a classifier gets is not."""
        first, begin = self.inner(PROBE)["input_ids"][:1], self.inner.bos_token_id
        return np.array(first, np.int64) if begin is not None and first == [begin] else NOTHING

    @cached_property
    def identity(self) -> str:
        """A hash of its vocabulary, its rules and its special tokens."""
        backend = getattr(self.inner, "backend_tokenizer", None)
        rules = json.dumps(self.inner.get_vocab()) if backend is None else backend.to_str()
        name = type(self.inner).__name__
        behaviour = f"{name} {self.inner.special_tokens_map} {rules}"
        return xxhash.xxh3_128(behaviour.encode()).hexdigest()

    def encode(self, text: str) -> NDArray[np.int64]:
        """Tokens of a text, of any length, with no special token added."""
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        return np.array(self.inner(text, **options)["input_ids"], np.int64)

    def sequence(self, text: str, most: int) -> NDArray[np.int64]:
        """Tokens of a text with the special ones that its model was trained with."""
        options = {"truncation": True, "max_length": most, "split_special_tokens": True}
        return np.array(self.inner(text, **options)["input_ids"], np.int64)

    def decode(self, tokens: NDArray[np.int64]) -> str:
        """Text of tokens, special ones included."""
        return str(self.inner.decode(tokens.tolist()))

    @cached_property
    def marks(self) -> Mapping[int, str]:
        """Its special tokens: how each is spelt in a template."""
        named = zip(self.inner.all_special_ids, self.inner.all_special_tokens, strict=True)
        added = self.inner.added_tokens_decoder.items()
        return dict(named) | {n: str(each.content) for n, each in added if each.special}

    def encode_marked(self, text: str) -> NDArray[np.int64]:
        """Tokens of a template's text: special tokens that are spelt out in it are meant."""
        options = {"add_special_tokens": False, "split_special_tokens": False, "verbose": False}
        return np.array(self.inner(text, **options)["input_ids"], np.int64)

    def save(self, folder: Path) -> None:
        """Write what ``AutoTokenizer.from_pretrained`` reads."""
        self.inner.save_pretrained(folder)


@dataclass(frozen=True)
class LazyTokenizer:
    """A tokenizer whose files are fetched when the first text is read; its numbers are known."""

    end: int
    pad: int
    size: int
    load: Callable[[], HubTokenizer]

    @property
    def start(self) -> NDArray[np.int64]:
        """Nothing."""
        return NOTHING

    @cached_property
    def _inner(self) -> HubTokenizer:
        return self.load()

    @property
    def identity(self) -> str:
        """A hash of its vocabulary, its rules and its special tokens; fetches its files."""
        return self._inner.identity

    def encode(self, text: str) -> NDArray[np.int64]:
        """Tokens of a text, with no special token added."""
        return self._inner.encode(text)

    def sequence(self, text: str, most: int) -> NDArray[np.int64]:
        """Tokens of a text with the special ones that its model expects."""
        return self._inner.sequence(text, most)

    def decode(self, tokens: NDArray[np.int64]) -> str:
        """Text of tokens, special ones included."""
        return self._inner.decode(tokens)

    def save(self, folder: Path) -> None:
        """Write what ``AutoTokenizer.from_pretrained`` reads."""
        self._inner.save(folder)
