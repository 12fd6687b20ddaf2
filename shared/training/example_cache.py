"""Examples as Arrow files in the data cache: every text is tokenised once.

A folder contains ``blocks.arrow`` and ``fingerprint.json`` with the sources of the examples and the
hash of the file. A folder that does not match is made anew; nothing is ever unpickled.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import xxhash

from shared.base.files import atomic_folder, cache_folder
from shared.data.documents import Documents
from shared.data.examples import Examples

LOG = logging.getLogger("dandelion")
EXAMPLES_FILE, FINGERPRINT_FILE = "blocks.arrow", "fingerprint.json"
FORMAT = 2  # of the file; a file of another format is made anew
READ_BYTES = 1 << 20  # at once, for the hash


def revision_of(documents: Documents) -> str:
    """The name that the loader gives to the documents' contents, or else a hash of them."""
    if documents.revision:
        return documents.revision
    digest = xxhash.xxh3_128()
    labels = documents.labels or [0] * len(documents.texts)
    for text, group, label in zip(documents.texts, documents.groups, labels, strict=True):
        digest.update(f"{len(text)} {group} {label} ".encode("utf-8", "replace"))
        digest.update(text.encode("utf-8", "replace"))
    for turns in documents.conversations or ():
        digest.update(turns.encode("utf-8", "replace"))
    return digest.hexdigest()


def load_or_make(
    settings: Mapping[str, object],
    tokenizer: str,
    documents: Documents,
    make: Callable[[], Examples],
) -> Examples:
    """Read the examples that were made of the same sources, or make and store them.

    Args:
        settings: all others that the examples depend on, among them ``dataset`` and ``block size``.
        tokenizer: its identity.
        documents: their source; a new revision of these replaces the old one.
        make: makes the examples.
    """
    purpose = {**settings, "tokenizer": tokenizer, "held out": any(documents.held_out or ())}
    name = xxhash.xxh3_64(json.dumps(purpose, sort_keys=True).encode()).hexdigest()
    title = f"{Path(str(settings['dataset'])).name}-{settings['block size']}-{name}"
    folder = cache_folder() / "blocks" / title
    fingerprint = {"format": FORMAT, "revision": revision_of(documents), **purpose}
    if folder.is_dir():
        if (cached := read(folder, fingerprint)) is not None:
            return cached
        LOG.warning("%s does not match %s: made anew", folder, settings["dataset"])
        shutil.rmtree(folder)
    examples = make()
    with atomic_folder(folder) as draft:
        write(draft, examples, fingerprint)
    return examples


def write(folder: Path, examples: Examples, fingerprint: Mapping[str, object]) -> None:
    """Put examples and their fingerprint into a folder."""
    import pyarrow as pa

    n, length = examples.tokens.shape
    columns = {
        "tokens": pa.FixedSizeListArray.from_arrays(pa.array(examples.tokens.reshape(-1)), length),
        "groups": pa.array(examples.groups),
    }
    for name, numbers in (("labels", examples.labels), ("targets", examples.targets)):
        if numbers is not None:
            columns[name] = pa.array(numbers)
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    with (
        pa.OSFile(str(folder / EXAMPLES_FILE), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as file,
    ):
        file.write_batch(batch)
    about = {**fingerprint, "examples": n, "names": examples.names, "hash": _hash(folder)}
    (folder / FINGERPRINT_FILE).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def read(folder: Path, fingerprint: Mapping[str, object]) -> Examples | None:
    """Map the examples from the file; None if it is damaged or has another fingerprint."""
    import pyarrow as pa

    try:
        about: Mapping[str, object] = json.loads((folder / FINGERPRINT_FILE).read_text())
        expected = {**fingerprint, "hash": _hash(folder)}
        if any(about.get(key) != value for key, value in expected.items()):
            return None
        batch = pa.ipc.open_file(pa.memory_map(str(folder / EXAMPLES_FILE))).get_batch(0)
    except (OSError, ValueError, AttributeError):
        return None
    tokens = batch["tokens"]
    labels, targets = (
        batch[name].to_numpy() if name in batch.schema.names else None
        for name in ("labels", "targets")
    )
    flat = tokens.values.to_numpy().reshape(len(tokens), tokens.type.list_size)
    names = tuple(str(name) for name in about["names"])  # type: ignore[attr-defined]
    return Examples(flat, batch["groups"].to_numpy(), names, labels, targets)


def _hash(folder: Path) -> str:
    digest = xxhash.xxh3_128()
    with (folder / EXAMPLES_FILE).open("rb") as file:
        while part := file.read(READ_BYTES):
            digest.update(part)
    return digest.hexdigest()
