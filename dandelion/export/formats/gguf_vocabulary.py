"""A tokenizer as a GGUF file describes it: tokens, their types, merges, and how text is split.

Byte-level BPE (Radford et al. 2019) alone is written: its merges are all that a reader needs. The
byte tokenizer is BPE without a merge, whose tokens are the 256 bytes. llama.cpp refuses a file
without merges, so a model with it is for transformers and for us.
"""

import json
from dataclasses import dataclass
from typing import Any

from shared.base.errors import ConfigError
from shared.models.model import Tokenizer
from shared.models.tokenizers import ByteTokenizer, HubTokenizer, LazyTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # gguf.TokenType
GPT2_SPLIT = "gpt-2"
SMOLLM_SPLIT = "smollm"


@dataclass(frozen=True)
class Vocabulary:
    """What ``tokenizer.ggml.*`` says."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    split: str  # by llama.cpp's name
    begin: int | None
    end: int
    pad: int
    chat_template: str | None = None


def vocabulary_of(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """Describe a tokenizer for a model whose embedding has so many rows.

    Raises:
        ConfigError: it is no byte-level BPE, or splits text in a way that GGUF has no name for.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return _byte_vocabulary(tokenizer, rows)
    if isinstance(tokenizer, LazyTokenizer):
        return vocabulary_of(tokenizer.load(), rows)
    if not isinstance(tokenizer, HubTokenizer):
        raise ConfigError(f"--gguf: tokenizer {type(tokenizer).__name__} cannot be written")
    inner = tokenizer.inner
    backend = getattr(inner, "backend_tokenizer", None)
    rules: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    kind = rules.get("model", {}).get("type", type(inner).__name__)
    if kind != "BPE" or "ByteLevel" not in json.dumps(rules.get("pre_tokenizer")):
        raise ConfigError(f"--gguf: a tokenizer of byte-level BPE expected, got {kind}")
    types = {each["id"]: CONTROL if each["special"] else USER_DEFINED
             for each in rules["added_tokens"]}  # fmt: skip
    names = {number: token for token, number in inner.get_vocab().items()}
    if len(names) > rows:
        raise ConfigError(f"--gguf: {len(names)} tokens do not fit an embedding of {rows} rows")
    return Vocabulary(
        [names.get(number, f"[PAD{number}]") for number in range(rows)],
        [types.get(number, NORMAL if number in names else UNKNOWN) for number in range(rows)],
        [" ".join(m) if isinstance(m, list) else m for m in rules["model"]["merges"]],
        _split_of(rules["pre_tokenizer"]),
        inner.bos_token_id, tokenizer.end, tokenizer.pad, getattr(inner, "chat_template", None),
    )  # fmt: skip


def _split_of(rule: dict[str, Any]) -> str:
    """The name that llama.cpp has for a rule by which text is split before BPE.

    Raises:
        ConfigError: it is none of those that are known here.
    """
    parts = rule.get("pretokenizers", [rule])
    *others, last = parts
    if not others and last["type"] == "ByteLevel" and last.get("use_regex", True):
        return GPT2_SPLIT
    kinds = [each["type"] for each in others]
    if kinds == ["Digits"] and last.get("use_regex", True):
        return SMOLLM_SPLIT
    if kinds == ["Split"]:
        pattern = others[0]["pattern"].get("Regex")
        if name := _read_splits().get(pattern):
            return name
    raise ConfigError(
        f"--gguf: text is split by {', '.join([*kinds, last['type']])} before it is tokenized, for "
        "which GGUF has no name that is known here"
    )


def _read_splits() -> dict[str, str]:
    """Names by regular expression; transformers has the table from 5.20 on."""
    try:
        from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping
    except ImportError:
        return {}
    splits: dict[str, str] = getattr(mapping, "GGUF_PRE_TOKENIZER_SPLITS", {})
    preferred = {pattern: name for name, pattern in reversed(splits.items())}
    return preferred | {splits[name]: name for name in ("llama-bpe", "qwen2") if name in splits}


def _byte_vocabulary(tokenizer: ByteTokenizer, rows: int) -> Vocabulary:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters: dict[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]
    tokens = ["<pad>", "</s>", "<unk>", *(letters[byte] for byte in range(256))]
    if len(tokens) != rows:
        raise ConfigError(f"--gguf: an embedding of {len(tokens)} rows expected, got {rows}")
    types = [CONTROL, CONTROL, UNKNOWN] + [NORMAL] * 256
    return Vocabulary(tokens, types, [], GPT2_SPLIT, None, tokenizer.end, tokenizer.pad)
