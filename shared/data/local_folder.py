"""Local folders: what ``datasets`` saved, tables in a format that it reads, or plain text files.

The column ``text``, or one of the sets of columns in TEXTS, holds the documents. ``group`` is the
natural id, ``label`` the class, ``held_out`` the flag of documents for evaluation. Any other
column of words or numbers is a natural id too (``partition-by``).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.base.errors import ConfigError, DataError
from shared.data.columns import OWN_COLUMNS, TEXTS, Columns, documents_from
from shared.data.documents import Documents, Source
from shared.data.folder_files import EXPECTED, TEXT, FolderFiles, cause_of


def is_saved(folder: Path) -> bool:
    """Whether ``datasets`` saved this folder: one data set, or a dictionary of splits."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def folder_source(folder: Path, columns: Columns | None = None) -> Source:
    """A local folder as a data set; ``columns``: the names that a run gives."""
    saved = is_saved(folder)
    return Source(
        lambda most, by: documents_in(folder, by, columns).thin(most), "local",
        f"the folder {folder}", ("group", *(_more_ids(folder) if saved else ())), "", "yours",
        any_id=not saved,
    )  # fmt: skip


def documents_in(folder: Path, by: str = "group", columns: Columns | None = None) -> Documents:
    """Read a folder; the texts of tables stay on disk until they are used.

    Raises:
        ConfigError: a column that is named is not there.
        DataError: it holds nothing that can be read, or no column of text; names what it holds.
    """
    if is_saved(folder):
        return documents_from(_open_saved(folder), by, str(folder), columns)
    files = FolderFiles.of(folder)
    if files.kind == TEXT:
        texts = files.texts()
        groups = files.groups([*texts])
        return Documents([*texts.values()], groups, no_labels=f"{folder} holds plain texts")
    return documents_from(files.table(), by, str(folder), columns)


def check_folder(folder: Path, given: Mapping[str, str]) -> None:
    """Find at once what a run would find wrong: files that cannot be read, columns that are none.

    Args:
        folder: of somebody's own data.
        given: settings of columns and their values, such as ``text-column``.

    Raises:
        ConfigError: a column that is named is not there.
        DataError: the folder cannot be read.
    """
    files = None if is_saved(folder) else FolderFiles.of(folder)
    if files is not None and files.kind == TEXT:
        files.texts()
        listed: list[str] = []
    else:
        listed = list((_open_saved(folder) if files is None else files.table()).column_names)
    for setting, value in given.items():
        for column in filter(None, map(str.strip, value.split(","))):
            if column not in listed:
                has = f"has columns {', '.join(listed)}" if listed else "holds plain texts"
                raise ConfigError(f"{setting}: {folder} {has}, got {column!r}")


def _open_saved(folder: Path) -> Any:  # noqa: ANN401
    """Open the ``Dataset`` that was saved in a folder: its train split if it has splits.

    Raises:
        DataError: it cannot be read, or has splits without ``train``.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    except Exception as error:  # whatever a library raises on a user's file
        raise DataError(f"{folder} cannot be read: {cause_of(error)}. {EXPECTED}") from error
    if not isinstance(dataset, DatasetDict):
        return dataset
    if "train" not in dataset:
        raise DataError(f"{folder}: a split 'train' expected, got {', '.join(dataset)}")
    return dataset["train"]


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
