"""The check at the door of a loaded model: its files, tokenizer, embeddings and padding agree."""

from pathlib import Path
from typing import Any

from shared.base.errors import DataError
from shared.models.model import CLASSIFIER, Tokenizer
from shared.models.tokenizers import ByteTokenizer

FEWEST_SHARE = 4  # a vocabulary below 1 / so many of the embeddings is not the model's own
ANY_VOCABULARY = ("tokenizer.json", "tekken.json", "*.model", "*.tiktoken", "vocab*")
FILES = "tokenizer.json, or its vocabulary files"


def check_tokenizer_files(name: str, source: str, tokenizer: Any) -> None:  # noqa: ANN401
    """Refuse a folder without the files of a tokenizer: transformers makes one that knows no word.

    Raises:
        DataError: says what to copy and where to put it.
    """
    folder, files = Path(source), set(getattr(tokenizer, "vocab_files_names", {}).values())
    if not folder.is_dir() or not files:  # a tokenizer of bytes has none
        return
    if not any(next(folder.glob(f), None) for f in (*files - {"config.json"}, *ANY_VOCABULARY)):
        raise DataError(
            f"model {name!r}: the tokenizer's files expected beside its weights ({FILES}), got "
            f"none in {folder}; copy them there from where the model is from"
        )


def check_agreement(name: str, module: Any, tokenizer: Tokenizer, inner: Any) -> None:  # noqa: ANN401
    """Compare a tokenizer with the embeddings of the model that it came with.

    Args:
        name: of the model.
        module: the model.
        tokenizer: as tasks use it.
        inner: the tokenizer of transformers that it wraps.

    Raises:
        DataError: a token has no embedding, or most embeddings have no token; says how many.
    """
    rows = int(module.get_input_embeddings().weight.shape[0])
    unused = _special_tokens(inner) - _tokens_of_texts(tokenizer, inner)
    tokens = set(inner.get_vocab().values()) - unused
    if beyond := [token for token in tokens if token >= rows]:
        raise DataError(
            f"model {name!r}: its tokenizer has {len(beyond)} tokens without an embedding, up to "
            f"number {max(beyond)}, and the model has {rows} embeddings: the two are not of one "
            "model"
        )
    is_bytes = isinstance(tokenizer, ByteTokenizer)
    if not is_bytes and len(inner) * FEWEST_SHARE < rows and not _knows_bytes(inner):
        raise DataError(
            f"model {name!r}: its tokenizer knows {len(inner)} tokens, and the model has {rows} "
            f"embeddings: most texts would be unknown tokens; copy the tokenizer's files ({FILES}) "
            "beside the weights"
        )


def check_end(name: str, module: Any, tokenizer: Tokenizer) -> None:  # noqa: ANN401
    """Refuse a head that looks for one end-of-text token, if texts get none or several.

    Raises:
        DataError: says what the tokenizer does.
    """
    end = getattr(module.config, "eos_token_id", None)
    if not type(module).__name__.endswith(CLASSIFIER) or not module.config.is_encoder_decoder:
        return
    tokens = tokenizer.sequence("a", 8).tolist()
    if tokens.count(end) != 1 or tokenizer.pad == end:
        raise DataError(
            f"model {name!r}: its head needs one end-of-text token {end} in each text; its "
            f"tokenizer gives {tokens} for 'a' and pads with {tokenizer.pad}: a tokenizer that "
            "adds it, and another padding, expected"
        )


def _tokens_of_texts(tokenizer: Tokenizer, inner: Any) -> set[int]:  # noqa: ANN401
    """The special tokens that texts get: around them, after them, and in place of unknown words."""
    ends = {tokenizer.end, tokenizer.pad, inner.unk_token_id}
    return {*ends, *tokenizer.sequence("a", 8).tolist()} - {None}


def _special_tokens(inner: Any) -> set[int]:  # noqa: ANN401
    """All special tokens: spelt out in a text, they are ordinary text."""
    added = getattr(inner, "added_tokens_decoder", {})
    return {*inner.all_special_ids, *(number for number, token in added.items() if token.special)}


def _knows_bytes(inner: Any) -> bool:  # noqa: ANN401
    """Whether any text has tokens, however small the vocabulary is: letters or bytes are tokens."""
    unknown = inner.unk_token_id
    tokens = inner("aZ7 é", add_special_tokens=False)["input_ids"]
    return bool(tokens) and unknown not in tokens
