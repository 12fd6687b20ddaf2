"""Several data sets as one folder, which ``dataset`` then takes like any other."""

from collections.abc import Sequence
from pathlib import Path

from shared.base.errors import ConfigError
from shared.base.files import atomic_folder
from shared.data.documents import Documents
from shared.data.local_folder import documents_in
from shared.data.resolve import documents_of


def merge(names: Sequence[str], out: Path, max_samples: int = 0) -> Documents:
    """Write the documents of several data sets, one set after the other, as ``datasets`` does.

    A group is named after its set too, and ``partition-by = source`` groups by set. Classes are
    kept where all sets have the same ones, and so is what each set holds out.

    Raises:
        ConfigError: fewer than two sets, or something is at ``out`` already.
    """
    if len(names) < 2:
        raise ConfigError(f"at least two data sets expected, got {list(names)}")
    if out.exists():
        raise ConfigError(f"{out}: there already; choose another --out")
    parts = {name: documents_of(name, max_samples) for name in names}
    with atomic_folder(out.resolve()) as draft:
        _write(parts, draft)
    return documents_in(out)


def _write(parts: dict[str, Documents], folder: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value, disable_progress_bars

    disable_progress_bars()
    features = {column: Value("string") for column in ("text", "group", "source")}
    short = {name: Path(name).name for name in parts}
    columns: dict[str, list[object]] = {
        "text": [text for part in parts.values() for text in part.texts],
        "group": [f"{short[n]}: {group}" for n, part in parts.items() for group in part.groups],
        "source": [short[n] for n, part in parts.items() for _ in part.texts],
    }
    classes = {part.classes for part in parts.values()}
    if len(classes) == 1 and all(part.labels is not None for part in parts.values()):
        features["label"] = ClassLabel(names=list(classes.pop()))
        columns["label"] = [label for part in parts.values() for label in part.labels or ()]
    if any(part.held_out is not None for part in parts.values()):
        features["held_out"] = Value("bool")
        columns["held_out"] = [
            held for part in parts.values() for held in part.held_out or [False] * len(part.texts)
        ]
    Dataset.from_dict(columns, Features(features)).save_to_disk(str(folder))
