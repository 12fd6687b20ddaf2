"""The order of classes: data, label words and a model's head must mean the same by a number."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shared.base.errors import ConfigError, DataError
from shared.data.documents import UNLABELLED, Documents


def number_classes(documents: Documents, words: Sequence[str]) -> Documents:
    """Number the labels of documents as everybody does: by the order of ``words``.

    A class has its word, in any case, or its number for a name. Documents may lack some classes, so
    their own numbers for the classes may differ from those of other documents. Other names keep
    their numbers if the data set itself gives an order and no word is at another place in it.

    Raises:
        DataError: a class has another name; names it, and the words.
    """
    if documents.labels is None:
        return documents
    used = sorted({label for label in documents.labels if label != UNLABELLED})
    names = {label: documents.classes[label] for label in used if label < len(documents.classes)}
    if len(names) < len(used):
        return documents  # a set of which only the numbers are known
    numbers = _numbers_of(names, words)
    if numbers is None:
        if documents.alphabetical or _contradict(names, words):
            raise DataError(
                f"classes must be called as label-words says, {_list_names(words)}, or all by "
                f"their numbers, 0 to {len(words) - 1}; got {_list_names(names.values())}"
            )
        return documents
    if all(label == number for label, number in numbers.items()):
        return replace(documents, classes=tuple(words), alphabetical=False)
    labels = [numbers.get(label, UNLABELLED) for label in documents.labels]
    revision = f"{documents.revision}, as {'/'.join(words)}" if documents.revision else ""
    return replace(
        documents, labels=labels, classes=tuple(words), revision=revision, alphabetical=False
    )


def check_head_order(config: Any, words: Sequence[str], name: str) -> None:  # noqa: ANN401
    """Compare the names that a head's file gives its outputs with the run's words.

    Args:
        config: of the model: ``id2label`` has the names.
        words: of the classes, in the order of their numbers.
        name: of the model, for the message.

    Raises:
        ConfigError: a word is the name of another output.
    """
    names = {int(number): str(label) for number, label in (config.id2label or {}).items()}
    if _contradict(names, words):
        order = ", ".join(label for _, label in sorted(names.items()))
        raise ConfigError(
            f"label-words: the order of the head of {name!r} expected, {order}; got "
            f"{', '.join(words)}: its outputs would be taken for other classes"
        )


def _numbers_of(names: Mapping[int, str], words: Sequence[str]) -> dict[int, int] | None:
    """The new number of each label in use, if all are called by words, or all by numbers."""
    known = {_plain(word): number for number, word in enumerate(words)}
    numbers = {str(number): number for number in range(len(words))}
    plain = {label: _plain(name) for label, name in names.items()}
    if not known.keys() & numbers.keys() and set(plain.values()) <= numbers.keys():
        known = numbers
    if not set(plain.values()) <= known.keys() or len(set(plain.values())) < len(plain):
        return None
    return {label: known[name] for label, name in plain.items()}


def _contradict(names: Mapping[int, str], words: Sequence[str]) -> bool:
    """Whether a word names a class of another number than its own."""
    known = {_plain(word): number for number, word in enumerate(words)}
    return any(known.get(_plain(name), label) != label for label, name in names.items())


def _list_names(names: Iterable[str]) -> str:
    """Names as ``label-words`` has them: one with a comma stands in quotation marks."""
    return ", ".join(f'"{name}"' if "," in name else name for name in names)


def _plain(name: str) -> str:
    return name.strip().casefold()
