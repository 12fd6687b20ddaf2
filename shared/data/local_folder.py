"""Local folders: what ``datasets`` saved, files in a format that it reads, or plain text files.

The column ``text``, or one of the sets of columns in TEXTS, holds the documents. ``group`` is the
natural id, ``label`` the class, ``held_out`` the flag of documents for evaluation. Any other
column of words or numbers is a natural id too (``partition-by``).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.base.errors import ConfigError, DataError
from shared.base.files import cache_folder
from shared.data.documents import Documents, Source

TEXTS = (("text",), ("question", "long_answer", "final_decision"), ("sentence",), ("content",))
LABELS = ("label", "final_decision")
TABLES = (".parquet", ".json", ".jsonl", ".csv", ".arrow", ".gz", ".zst")
MOST_GROUPS = 256  # of consecutive documents, if no column names their groups
OWN_COLUMNS = ("group", "label", "held_out")


def is_saved(folder: Path) -> bool:
    """Whether ``datasets`` saved this folder: one data set, or a dictionary of splits."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def folder_source(folder: Path) -> Source:
    """A local folder as a data set."""
    return Source(
        lambda most, by: documents_in(folder, by).thin(most), "local", f"the folder {folder}",
        ("group", *_more_ids(folder)), "", "yours",
    )  # fmt: skip


def documents_in(folder: Path, by: str = "group") -> Documents:
    """Read a folder; texts stay on disk until they are used.

    Raises:
        DataError: it holds nothing that can be read, or no column of text; names what it holds.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".txt", *TABLES))
    if files and not is_saved(folder) and all(path.suffix == ".txt" for path in files):
        return Documents([_read(path) for path in files], [path.stem for path in files])
    return documents_from(open_folder(folder), by, str(folder))


def open_folder(folder: Path) -> Any:  # noqa: ANN401
    """Open the ``Dataset`` in a folder: its train split if it has splits.

    Raises:
        DataError: it cannot be read, or has splits without ``train``.
    """
    from datasets import DatasetDict, disable_progress_bars, load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    try:
        if not is_saved(folder):
            cache = str(cache_folder() / "read")
            return load_dataset(str(folder), split="train", cache_dir=cache)
        dataset = load_from_disk(str(folder))
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"{folder} cannot be read: {str(error).splitlines()[0]}. A folder that datasets saved "
            "(save_to_disk), or one of parquet, json, csv or text files expected"
        ) from error
    if not isinstance(dataset, DatasetDict):
        return dataset
    if "train" not in dataset:
        raise DataError(f"{folder}: a split 'train' expected, got {', '.join(dataset)}")
    return dataset["train"]


def documents_from(dataset: Any, by: str, name: str) -> Documents:  # noqa: ANN401
    """Make documents of a ``Dataset``, grouped by the column ``by``.

    Raises:
        ConfigError: there is no such column.
        DataError: no column of text is known.
    """
    columns, total = dataset.column_names, len(dataset)
    texts = (
        dataset["text"] if "text" in columns else join_columns(dataset, text_columns(columns, name))
    )
    if by in columns:
        groups = [str(value) for value in dataset[by]]
    elif by == "group":
        count = min(MOST_GROUPS, total)
        groups = [f"part-{row * count // total:03d}" for row in range(total)]
    else:
        raise ConfigError(f"partition-by: {name} has columns {', '.join(columns)}, got {by!r}")
    labels, classes = classes_of(dataset)
    held_out = list(dataset["held_out"]) if "held_out" in columns else None
    return Documents(texts, groups, labels, classes, held_out, f"{dataset._fingerprint}")


def text_columns(columns: Sequence[str], name: str) -> tuple[str, ...]:
    """The columns that make up a document, by their names.

    Raises:
        DataError: none of the known sets of columns is there.
    """
    for wanted in TEXTS:
        if set(wanted) <= set(columns):
            return wanted
    known = "; ".join(" + ".join(wanted) for wanted in TEXTS)
    raise DataError(f"{name}: columns of text expected ({known}), got {', '.join(columns)}")


def join_columns(rows: Any, columns: Sequence[str]) -> list[str]:  # noqa: ANN401
    """One text per row: its columns, one under the other."""
    return ["\n".join(map(str, parts)) for parts in zip(*(rows[c] for c in columns), strict=True)]


def classes_of(dataset: Any) -> tuple[list[int] | None, tuple[str, ...]]:  # noqa: ANN401
    """The label of each row and the names of the labels; None and () if there are none."""
    column = next((c for c in LABELS if c in dataset.column_names), "")
    values = list(dataset[column]) if column else []
    if not values or any(value is None for value in values):
        return None, ()
    names = getattr(dataset.features[column], "names", None)
    if names is not None and min(values) >= 0:
        return values, tuple(names)
    known = sorted(set(values))
    numbers = {value: number for number, value in enumerate(known)}
    return [numbers[value] for value in values], tuple(map(str, known))


def _more_ids(folder: Path) -> list[str]:
    """Columns of words or numbers beside text and class, by the folder's own description."""
    split = folder / "train" if (folder / "dataset_dict.json").is_file() else folder
    try:
        features: Mapping[str, Mapping[str, str]] = json.loads(
            (split / "dataset_info.json").read_text()
        )["features"]
    except (OSError, ValueError, KeyError):
        return []
    texts = {column for columns in TEXTS for column in columns}
    return [
        name
        for name, feature in features.items()
        if name not in texts | {*OWN_COLUMNS} and feature.get("_type") in ("Value", "ClassLabel")
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error
