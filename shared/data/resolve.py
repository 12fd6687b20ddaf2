"""Data sets by name: their documents, grouped as a run needs them, and several merged into one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shared.base.errors import ConfigError
from shared.base.files import atomic_folder
from shared.data.columns import Columns
from shared.data.documents import DATASETS, UNLABELLED, Documents, Source
from shared.data.hub_cache import any_on_hub
from shared.data.local_folder import documents_in, folder_source

LABEL = "label"  # the natural id that groups documents by class
NO_CLASS = "no class"  # the group of those that have none


def source_of(name: str, columns: Columns | None = None) -> Source:
    """A registered data set, a local folder, or ``owner/name[:config]`` on the hub.

    ``columns`` are the names that a folder's columns have; other sets know their own.

    Raises:
        UnknownNameError: nothing has this name.
    """
    if name in DATASETS.names():
        return DATASETS[name]
    if Path(name).is_dir():
        return folder_source(Path(name), columns)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/"):
        return any_on_hub(name)
    if "/" in name:
        raise ConfigError(f"dataset: {name!r} is no folder here")
    return DATASETS[name]


def documents_of(
    name: str, max_samples: int = 0, by: str = "", columns: Columns | None = None
) -> Documents:
    """Load a data set, its documents grouped by a natural id, or by their label.

    Args:
        name: of the data set.
        max_samples: number of documents; 0: as many as the data set recommends.
        by: one of its natural ids, or ``label``; empty: its first id.
        columns: the names of text and class, if it is a folder; None: those that are known.

    Raises:
        ConfigError: the data set has no such id.
        DataError: it cannot be had; says what to download and where to put it.
    """
    source = source_of(name, columns)
    usual = source.ids[0]
    if by not in ("", LABEL, *source.ids) and not source.any_id:
        raise ConfigError(
            f"partition-by: {name!r} can be grouped by {', '.join(source.ids)}, or by label if "
            f"it has classes; got {by!r}"
        )
    documents = source.load(max_samples or source.samples, usual if by in ("", LABEL) else by)
    if by != LABEL:
        return documents
    if documents.labels is None:
        why = f": {documents.no_labels}" if documents.no_labels else ""
        raise ConfigError(f"partition-by = label: {name!r} has no classes{why}")
    names = [
        NO_CLASS if label == UNLABELLED else documents.classes[label] for label in documents.labels
    ]
    return replace(documents, groups=names, anonymous=False)


def merge(names: Sequence[str], out: Path, max_samples: int = 0) -> Documents:
    """Write the documents of several data sets into one folder, which ``dataset`` then names.

    A group's name begins with its set's, and ``partition-by = source`` groups by set. Labels are
    written if all sets have the same classes, and so is what each set holds out.

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
            flag for part in parts.values() for flag in part.held_out or [False] * len(part.texts)
        ]
    Dataset.from_dict(columns, Features(features)).save_to_disk(str(folder))
