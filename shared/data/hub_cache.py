"""Copies of the hub's data sets in the data cache: streamed as far as needed, under our columns."""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from shared.base.errors import DataError
from shared.base.files import atomic_folder, cache_folder
from shared.data.local_folder import text_columns

LOG = logging.getLogger("dandelion")
ORIGIN = "origin.json"


@dataclass(frozen=True)
class HubRow:
    """Where on the hub a data set is, and which of its columns mean what."""

    hub: str
    config: str = ""
    text: tuple[str, ...] = ()  # one under the other where there are several; empty = look
    group: str = ""  # natural id; a dot leads into a record
    label: str = ""
    held_out: str = ""  # a split that is kept for evaluation
    samples: int = 0  # documents that are recommended; 0 = all there are
    headings: bool = False  # rows are lines, and a document begins at a line ' = Title = '


def place_of(name: str, most: int) -> Path:
    """Where a copy is or will be: what was put by hand as ``<cache>/local/<name>`` goes before."""
    by_hand = cache_folder() / "local" / name
    if by_hand.is_dir():
        return by_hand
    return cache_folder() / "hub" / f"{name.replace('/', '--')}-{most or 'all'}"


def copy_of(name: str, row: HubRow, most: int) -> Path:
    """The folder with the first ``most`` documents (0: all), streamed from the hub if not there.

    Raises:
        DataError: neither is the folder there nor can the hub be reached.
    """
    folder = place_of(name, most)
    if folder.is_dir():
        return folder
    try:
        revision = revision_of(row)
        LOG.warning("streaming %s of %s (once)", f"{most} documents" if most else "all", row.hub)
        with atomic_folder(folder) as draft:
            _save(row, most, revision, draft)
    except _unreachable() as error:
        reason, local = (
            str(error.__cause__ or error).splitlines()[0].rstrip("."),
            cache_folder() / "local",
        )
        raise DataError(
            f"data set {name!r} cannot be had from the hub ({row.hub}): {reason}. Where the hub "
            f"can be reached, run 'dandelion data download {name}' and copy {folder} here; or "
            f"save the data set yourself (datasets: save_to_disk) as {local / name}"
        ) from error
    return folder


def revision_of(row: HubRow) -> str:
    """The commit that the hub has now; nothing for a local copy of a repository."""
    from huggingface_hub import HfApi

    return "" if Path(row.hub).is_dir() else str(HfApi().dataset_info(row.hub, timeout=30).sha)


def _save(row: HubRow, most: int, revision: str, draft: Path) -> None:
    """Write the documents as ``datasets`` does, under the columns that we read."""
    from datasets import ClassLabel, Dataset, Features, Value, disable_progress_bars

    disable_progress_bars()
    train = _split(row, "train", revision)
    row = _known(row, train)
    features = {"text": Value("string")}
    if row.group:
        features["group"] = Value("string")
    if row.label:
        known = (train.features or {}).get(row.label)
        features["label"] = known if isinstance(known, ClassLabel) else Value("string")
    if row.held_out:
        features["held_out"] = Value("bool")

    def rows() -> Iterator[dict[str, Any]]:
        yield from islice(_documents(row, train, False), most or None)
        if row.held_out:
            yield from _documents(row, _split(row, row.held_out, revision), True)

    scratch = draft / "scratch"
    dataset = Dataset.from_generator(
        rows, features=Features(features), cache_dir=str(scratch),
        fingerprint=f"{draft.name.strip('.').replace('.', '-')}-{revision or 'local'}",
    )  # fmt: skip
    dataset.save_to_disk(str(draft))
    origin = {"hub": row.hub, "config": row.config, "revision": revision, "documents": len(dataset)}
    (draft / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n")
    shutil.rmtree(scratch)


def _split(row: HubRow, split: str, revision: str) -> Any:  # noqa: ANN401
    from datasets import load_dataset

    return load_dataset(
        row.hub, row.config or None, split=split, streaming=True, revision=revision or None
    )


def _known(row: HubRow, train: Any) -> HubRow:  # noqa: ANN401
    """The row with its columns of text, which may have to be looked at."""
    if row.text:
        return row
    columns = train.column_names or list(next(iter(train)))
    label = "label" if "label" in columns else ""
    return replace(row, text=text_columns(columns, row.hub), label=row.label or label)


def _documents(
    row: HubRow, lines: Iterable[Mapping[str, Any]], held: bool
) -> Iterator[dict[str, Any]]:
    """Our columns of each document."""
    for line in articles(lines) if row.headings else lines:
        found: dict[str, Any] = {"text": "\n".join(str(line[column]) for column in row.text)}
        if row.group:
            found["group"] = str(_at(line, row.group))
        if row.label:
            found["label"] = line[row.label]
        if row.held_out:
            found["held_out"] = held
        yield found


def articles(lines: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """Join lines to articles; one begins at ' = Title = ', not at ' = = Section = = '."""
    kept: list[str] = []
    for line in lines:
        text = str(line["text"])
        if text.startswith(" = ") and not text.startswith(" = = ") and "".join(kept).strip():
            yield {"text": "".join(kept)}
            kept = []
        kept.append(text)
    if "".join(kept).strip():
        yield {"text": "".join(kept)}


def _at(record: Any, path: str) -> object:  # noqa: ANN401
    for key in path.split("."):
        record = record[key]
    return record


def _unreachable() -> tuple[type[Exception], ...]:
    """What hub and network raise for all that is amiss."""
    from datasets.exceptions import DatasetsError
    from httpx import HTTPError

    return OSError, ValueError, KeyError, HTTPError, DatasetsError
