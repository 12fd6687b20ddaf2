"""Data sets of the Hugging Face hub, streamed as far as needed and copied into the data cache.

A copy has the columns that ``local_folder`` reads: text, group, label, held_out. Later runs read
the copy and need no hub.
"""

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
from shared.data.columns import join_cells, text_columns
from shared.data.documents import Documents, Source
from shared.data.local_folder import documents_in

LOG = logging.getLogger("dandelion")
ORIGIN_FILE = "origin.json"
UNKNOWN_SAMPLES = 10_000  # documents of a set that no row describes


@dataclass(frozen=True)
class HubRow:
    """The address of a data set on the hub, and what its columns mean."""

    hub: str
    config: str = ""
    text: tuple[str, ...] = ()  # columns that are joined by line ends; empty: known names
    group: str = ""  # natural id; a dot leads into a record
    label: str = ""
    held_out: str = ""  # a split that serves for evaluation
    samples: int = 0  # recommended number of documents; 0: all
    headings: bool = False  # rows are lines, and a document begins at a line ' = Title = '


def hub_source(name: str, row: HubRow, about: str, size: str, licence: str) -> Source:
    """A row as a data set; ``<name>-local`` is usually a folder that somebody saved."""

    def load(most: int, by: str) -> Documents:
        return documents_in(fetch_copy(name, row, most if row.samples else 0), by).thin(most)

    kind = "local" if name.endswith("-local") else "hub"
    return Source(
        load, kind, about, ("group",), size, licence, row.samples, hub=row.hub,
        here=lambda: copy_folder(name, row.samples).is_dir(),
    )  # fmt: skip


def any_on_hub(name: str) -> Source:
    """A data set by its name on the hub, ``owner/name`` or ``owner/name:config``."""
    hub, _, config = name.partition(":")
    row = HubRow(hub, config, samples=UNKNOWN_SAMPLES)
    return hub_source(name.replace(":", "--"), row, f"{hub} on the hub", "", "see the hub")


def copy_folder(name: str, most: int) -> Path:
    """The folder of a copy, whether it is there or not; ``<cache>/local/<name>`` has precedence."""
    by_hand = cache_folder() / "local" / name
    if by_hand.is_dir():
        return by_hand
    return cache_folder() / "hub" / f"{name.replace('/', '--')}-{most or 'all'}"


def fetch_copy(name: str, row: HubRow, most: int) -> Path:
    """The folder with the first ``most`` documents (0: all), streamed from the hub if not there.

    Raises:
        DataError: neither is the folder there nor can the hub be reached.
    """
    folder = copy_folder(name, most)
    if folder.is_dir():
        return folder
    try:
        revision = hub_revision(row)
        LOG.warning("streaming %s of %s (once)", f"{most} documents" if most else "all", row.hub)
        with atomic_folder(folder) as draft:
            _save(row, most, revision, draft)
    except _unreachable() as error:
        reason = str(error.__cause__ or error).splitlines()[0].rstrip(".")
        local = cache_folder() / "local" / name
        raise DataError(
            f"data set {name!r} cannot be had from the hub ({row.hub}): {reason}. Where the hub "
            f"can be reached, run 'dandelion data download {name}' and copy {folder} here; or "
            f"save the data set yourself (datasets: save_to_disk) as {local}"
        ) from error
    return folder


def hub_revision(row: HubRow) -> str:
    """The newest commit on the hub; empty for a local copy of a repository."""
    from huggingface_hub import HfApi

    return "" if Path(row.hub).is_dir() else str(HfApi().dataset_info(row.hub, timeout=30).sha)


def _save(row: HubRow, most: int, revision: str, draft: Path) -> None:
    """Write the documents in the format of ``datasets``, with the columns of ``local_folder``."""
    from datasets import ClassLabel, Dataset, Features, Value, disable_progress_bars

    disable_progress_bars()
    train = _split(row, "train", revision)
    row = _with_columns(row, train)
    features = {"text": Value("string")}
    if row.group:
        features["group"] = Value("string")
    if row.label:
        feature = (train.features or {}).get(row.label)
        features["label"] = feature if isinstance(feature, ClassLabel) else Value("string")
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
    (draft / ORIGIN_FILE).write_text(json.dumps(origin, indent=1) + "\n")
    shutil.rmtree(scratch)


def _split(row: HubRow, split: str, revision: str) -> Any:  # noqa: ANN401
    from datasets import load_dataset

    return load_dataset(
        row.hub, row.config or None, split=split, streaming=True, revision=revision or None
    )


def _with_columns(row: HubRow, train: Any) -> HubRow:  # noqa: ANN401
    """The row with its columns of text; those of an unknown set are looked up by their names."""
    if row.text:
        return row
    columns = train.column_names or list(next(iter(train)))
    label = "label" if "label" in columns else ""
    return replace(row, text=text_columns(columns, row.hub), label=row.label or label)


def _documents(
    row: HubRow, lines: Iterable[Mapping[str, Any]], held_out: bool
) -> Iterator[dict[str, Any]]:
    """The columns of each document under our names."""
    for line in articles(lines) if row.headings else lines:
        columns: dict[str, Any] = {"text": join_cells([line[column] for column in row.text])}
        if row.group:
            columns["group"] = str(_value_at(line, row.group))
        if row.label:
            columns["label"] = line[row.label]
        if row.held_out:
            columns["held_out"] = held_out
        yield columns


def articles(lines: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """Join lines to articles; one begins at ' = Title = ', not at ' = = Section = = '."""
    article: list[str] = []
    for line in lines:
        text = str(line["text"])
        if text.startswith(" = ") and not text.startswith(" = = ") and "".join(article).strip():
            yield {"text": "".join(article)}
            article = []
        article.append(text)
    if "".join(article).strip():
        yield {"text": "".join(article)}


def _value_at(record: Any, path: str) -> object:  # noqa: ANN401
    for key in path.split("."):
        record = record[key]
    return record


def _unreachable() -> tuple[type[Exception], ...]:
    """The errors of the hub and of the network."""
    from datasets.exceptions import DatasetsError
    from httpx import HTTPError

    return OSError, ValueError, KeyError, HTTPError, DatasetsError
