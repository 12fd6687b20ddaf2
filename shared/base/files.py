"""The data cache: what can be had or made again, each folder whole or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

CHUNK = 1 << 20  # bytes read at a time


def cache_folder() -> Path:
    """``DANDELION_CACHE``, else ``dandelion`` where the desktop standard (XDG) puts caches."""
    if own := os.environ.get("DANDELION_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dandelion"


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty draft that becomes ``folder`` at the end, or vanishes with the error.

    Of two processes that make the same folder at once, the first one's is kept. A draft that a
    crash left behind is removed by the next that makes this folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.*"):
        if not Path("/proc", left.suffix[1:]).exists():
            shutil.rmtree(left, ignore_errors=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def file_hash(path: Path) -> str:
    """XXH3 (128 bits) of a file's bytes, as hexadecimal text: finds damage, not forgery."""
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            found.update(part)
    return found.hexdigest()
