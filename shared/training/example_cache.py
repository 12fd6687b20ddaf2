"""Examples as Arrow files in the data cache, so that a text is tokenised once.

A folder holds ``blocks.arrow`` and ``fingerprint.json``, which says what the examples were made of
and the hash of the file. One that does not match is made anew; nothing is ever unpickled.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from shared.base.files import atomic_folder, cache_folder
from shared.data.documents import Documents
from shared.data.examples import Examples

LOG = logging.getLogger("dandelion")
FILE, FINGERPRINT = "blocks.arrow", "fingerprint.json"
FORMAT = 1  # of the file; another one is made anew


def revision_of(documents: Documents) -> str:
    """What the loader says names the contents, or else a hash of them."""
    if documents.revision:
        return documents.revision
    found = xxhash.xxh3_128()
    labels = documents.labels or [0] * len(documents.texts)
    for text, group, label in zip(documents.texts, documents.groups, labels, strict=True):
        found.update(f"{len(text)} {group} {label} ".encode("utf-8", "replace"))
        found.update(text.encode("utf-8", "replace"))
    return found.hexdigest()


def load_or_make(
    settings: Mapping[str, object],
    tokenizer: str,
    documents: Documents,
    make: Callable[[], Examples],
) -> Examples:
    """Read the examples that were made of the same, or make and keep them.

    Args:
        settings: what else decides the examples; ``dataset`` and ``block size`` are among them.
        tokenizer: its identity.
        documents: what they are made of; another revision of these takes the old one's place.
        make: makes them.
    """
    purpose = {**settings, "tokenizer": tokenizer, "held out": any(documents.held_out or ())}
    name = xxhash.xxh3_64(json.dumps(purpose, sort_keys=True).encode()).hexdigest()
    title = f"{Path(str(settings['dataset'])).name}-{settings['block size']}-{name}"
    folder = cache_folder() / "blocks" / title
    fingerprint = {"format": FORMAT, "revision": revision_of(documents), **purpose}
    if folder.is_dir():
        if (blocks := read(folder, fingerprint)) is not None:
            return blocks
        LOG.warning("%s is not what %s is now: made anew", folder, settings["dataset"])
        shutil.rmtree(folder)
    blocks = make()
    with atomic_folder(folder) as draft:
        write(draft, blocks, fingerprint)
    return blocks


def write(folder: Path, blocks: Examples, fingerprint: Mapping[str, object]) -> None:
    """Put examples and their fingerprint into a folder."""
    import pyarrow as pa

    n, length = blocks.tokens.shape
    columns = {
        "tokens": pa.FixedSizeListArray.from_arrays(pa.array(blocks.tokens.reshape(-1)), length),
        "groups": pa.array(blocks.groups),
    }
    if blocks.labels is not None:
        columns["labels"] = pa.array(blocks.labels)
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    with pa.OSFile(str(folder / FILE), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
        file.write_batch(batch)
    about = {**fingerprint, "examples": n, "names": blocks.names, "hash": _hash(folder)}
    (folder / FINGERPRINT).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def read(folder: Path, fingerprint: Mapping[str, object]) -> Examples | None:
    """The examples, mapped from the file; nothing if they are damaged or of something else."""
    import pyarrow as pa

    try:
        about: Mapping[str, object] = json.loads((folder / FINGERPRINT).read_text())
        expected = {**fingerprint, "hash": _hash(folder)}
        if any(about.get(key) != value for key, value in expected.items()):
            return None
        batch = pa.ipc.open_file(pa.memory_map(str(folder / FILE))).get_batch(0)
    except (OSError, ValueError, AttributeError):
        return None
    tokens = batch["tokens"]
    labels: NDArray[np.int64] | None = None
    if "labels" in batch.schema.names:
        labels = batch["labels"].to_numpy()
    flat = tokens.values.to_numpy().reshape(len(tokens), tokens.type.list_size)
    names = tuple(str(name) for name in about["names"])  # type: ignore[attr-defined]
    return Examples(flat, batch["groups"].to_numpy(), names, labels)


def _hash(folder: Path) -> str:
    found = xxhash.xxh3_128()
    with (folder / FILE).open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()
