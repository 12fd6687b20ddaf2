"""Files that are whole or absent, the cache folder, and digests of files and of our own source.

A process that dies while it writes leaves a draft, whose name ends with the process's number. The
next write of the same file or folder removes it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path

from shared.base.plug_ins import plug_in_sources

READ_BYTES = 1 << 20  # of a file at a time
STATE = "XDG_STATE_HOME"  # the variable that names the user's state folder
OWN_PACKAGES = ("client", "server", "shared")


def cache_folder() -> Path:
    """Return ``DANDELION_CACHE``, else ``dandelion`` in the user's cache folder (XDG)."""
    if own := os.environ.get("DANDELION_CACHE"):
        return Path(own).expanduser()
    own_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own_home).expanduser() / "dandelion"


@contextmanager
def translate_tensor_errors(folder: Path) -> Iterator[None]:
    """Within it, what safetensors raises while it writes, such as for a full disk, is an OSError.

    Raises:
        OSError: names the folder, and says what safetensors said.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{folder}: {error}") from error


def state_folder() -> Path:
    """Return ``dandelion`` in the user's state folder (XDG), for what must outlive a run."""
    given = os.environ.get(STATE, "")
    return Path(given or Path.home() / ".local" / "state") / "dandelion"


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty draft that becomes ``folder`` at the end, or is removed after an error.

    If two processes make the same folder at once, the folder of the first one stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for draft in _find_abandoned_drafts(folder):
        shutil.rmtree(draft, ignore_errors=True)
    draft = _draft_of(folder)
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


@contextmanager
def draft_file(path: Path) -> Iterator[Path]:
    """Yield the path of a draft that becomes ``path`` at the end, or is removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for draft in _find_abandoned_drafts(path):
        draft.unlink(missing_ok=True)
    draft = _draft_of(path)
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a crash leaves the old file or the new one, never a part.

    File and folder are flushed to the disk before this returns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for draft in _find_abandoned_drafts(path):
        draft.unlink(missing_ok=True)
    draft = _draft_of(path)
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _find_abandoned_drafts(path: Path) -> Iterator[Path]:
    """Yield the drafts of ``path`` whose processes are gone."""
    for draft in path.parent.glob(f".{path.name}.*"):
        process = draft.suffix[1:]
        if process.isdigit() and not Path("/proc", process).exists():
            yield draft


def file_hash(path: Path) -> str:
    """Return XXH3 (128 bits) of a file's bytes in hexadecimal: it finds damage, not forgery."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while part := file.read(READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


@cache
def code_digest() -> bytes:
    """Return 16 bytes over names and contents of the ``.py`` files that server and sites share.

    They are those of client, server and shared, and of every installed plug-in. Server and sites
    must run the same source to compute the same bits. Flower's simulation can load another app's
    ``client`` package unnoticed, so a site compares its digest with the server's before it does
    anything.

    Raises:
        ConfigError: a plug-in has no source files.
    """
    root, digest = Path(__file__).resolve().parents[2], sha256()
    for package in OWN_PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    for name, path in sorted(plug_in_sources().items()):
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.digest()[:16]
