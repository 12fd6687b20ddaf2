"""The files of a folder: which of them are read, which are left out, and why one cannot be read."""

import bz2
import codecs
import gzip
import logging
import lzma
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.base.errors import DataError
from shared.base.files import cache_folder

LOG = logging.getLogger("dandelion")
TEXT = "text"
KINDS = {  # what a file is, by the end of its name
    ".txt": TEXT, ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "json",
    ".ndjson": "json", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
PACKED = (".gz", ".zst", ".bz2", ".xz")  # a compressed file is of the kind that its name says
UNPACK = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
OWN_FILES = {"state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
ENCODED = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".ndjson")
NO_ROWS = "rows expected, got none"
CAUSE_CHARACTERS = 300
CARD = "README.md"  # with settings at its top, it tells the datasets library what to read
NAMED = 3  # files in a message
EXPECTED = (
    "A folder that datasets saved (save_to_disk), or one of parquet, json, csv, tsv or text files "
    "expected"
)


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder that are read, all of one kind, and the others."""

    folder: Path
    kind: str  # one of KINDS; empty: only the datasets library may know
    read: tuple[Path, ...]
    left_out: tuple[Path, ...]

    @classmethod
    def of(cls, folder: Path) -> "FolderFiles":
        """Look at a folder; hidden files are not part of it. Logs which files are left out.

        Tables go before texts: a licence may lie beside them.

        Raises:
            DataError: tables of several kinds, or none that is for training by its name.
        """
        files = [path for path in sorted(_all_files(folder)) if _is_data(path, folder)]
        kinds = Counter(kind for path in files if (kind := kind_of(path)))
        tables = [kind for kind in kinds if kind != TEXT]
        if len(tables) > 1:
            counts = ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(tables))
            raise DataError(
                f"{folder}: tables of one kind expected, got {counts}; put those to be read into a "
                "folder of their own"
            )
        kind = tables[0] if tables else TEXT if kinds else ""
        if not kind or _has_card(folder):
            return cls(folder, "", tuple(files), ())
        read = [path for path in files if kind_of(path) == kind]
        read = _for_training(folder, read) if kind != TEXT else read
        left_out = [path for path in files if path not in set(read)]
        if left_out:
            LOG.warning(
                "%s: %d files are read (%s), %d are not: %s", folder, len(read), kind,
                len(left_out), names_of(left_out, folder),
            )  # fmt: skip
        return cls(folder, kind, tuple(read), tuple(left_out))

    def texts(self) -> dict[Path, str]:
        """The contents of the text files that are not empty, in the order of ``read``.

        Raises:
            DataError: one is not UTF-8, or damaged; or all are empty.
        """
        texts = {path: _read_text(path) for path in self.read}
        if empty := [path for path, text in texts.items() if not text]:
            LOG.warning(
                "%s: %d of %d text files are empty and are left out: %s", self.folder, len(empty),
                len(texts), names_of(empty, self.folder),
            )  # fmt: skip
        if len(empty) == len(texts):
            raise DataError(f"{self.folder}: texts expected, all files are empty")
        return {path: text for path, text in texts.items() if text}

    def groups(self, paths: Sequence[Path]) -> list[str]:
        """The natural id of each text file: its folder, or its own name if all are in one."""
        if len({path.parent for path in self.read}) == 1:
            return [_stem(path) for path in paths]
        parents = [path.parent.relative_to(self.folder).as_posix() for path in paths]
        return [
            _stem(path) if parent == "." else parent
            for path, parent in zip(paths, parents, strict=True)
        ]

    def table(self) -> Any:  # noqa: ANN401
        """The rows of the tables as one ``Dataset``.

        Raises:
            DataError: a table cannot be read; names the file and the cause.
        """
        try:
            return self._load(self.read)
        except Exception as error:  # whatever a library raises on a user's file
            file = self._find_broken()
            cause = explain_bytes(file) if file else ""
            raise DataError(
                f"{file or self.folder} cannot be read: {cause or cause_of(error)}. {EXPECTED}"
            ) from error

    def _load(self, files: Sequence[Path]) -> Any:  # noqa: ANN401
        from datasets import disable_progress_bars, load_dataset, logging

        disable_progress_bars()
        logging.set_verbosity(logging.CRITICAL)  # what goes wrong is said once, by the error
        options: dict[str, object] = {"split": "train", "cache_dir": str(cache_folder() / "read")}
        if not self.kind:
            return load_dataset(str(self.folder), **options)
        builder, more = ("csv", {"sep": "\t"}) if self.kind == "tsv" else (self.kind, {})
        names = {"train": [_escape(path) for path in files]}
        return load_dataset(builder, data_files=names, **options, **more)

    def _find_broken(self) -> Path | None:
        """The first file that cannot be read alone; None if that is no single file's fault."""
        for path in self.read if self.kind else ():
            try:
                self._load([path])
            except Exception:  # the same as above
                return path
        return None


def kind_of(path: Path) -> str:
    """What a file is, by its name without the end of a compressed file; empty: unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return KINDS.get(suffixes[-1], "") if suffixes else ""


def cause_of(error: BaseException) -> str:
    """The first line of the innermost cause: libraries wrap it in words that say nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].endswith(":"):  # what follows is what it is about, such as columns that differ
        return " ".join(lines)[:CAUSE_CHARACTERS].rstrip(".")
    return NO_ROWS if lines[0].endswith("corresponds to no data!") else lines[0].rstrip(".")


def explain_bytes(path: Path) -> str:
    """Say what is wrong with a file's encoding, and in which line; empty if it is plain UTF-8."""
    if path.suffix.lower() not in ENCODED:
        return ""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-8 expected, got UTF-16: save it as UTF-8"
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{data[error.start]:02x} in line {line}"
        return f"UTF-8 expected, got {byte}: save it as UTF-8"
    if path.suffix.lower() == ".json" and data.startswith(codecs.BOM_UTF8):
        return "JSON expected, got a byte order mark first: save it as UTF-8 without one"
    return "" if data.strip() else NO_ROWS


def names_of(files: Sequence[Path], folder: Path) -> str:
    """The first names of some files, for a message."""
    names = ", ".join(path.relative_to(folder).as_posix() for path in files[:NAMED])
    return f"{names}, …" if len(files) > NAMED else names


def _all_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, links to folders followed, each folder once."""
    seen = set[str]()
    for at, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(at)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(at, name) for name in files)


def _is_data(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    is_there = path.is_file() or (path.is_symlink() and not path.exists())  # a broken link is said
    return is_there and not hidden and path.name not in OWN_FILES


def _has_card(folder: Path) -> bool:
    try:
        with (folder / CARD).open(encoding="utf-8", errors="replace") as card:
            return card.readline().rstrip() == "---"
    except OSError:
        return False


def _for_training(folder: Path, files: list[Path]) -> list[Path]:
    """The files of the split ``train``, by the rules of the datasets library for their names.

    Raises:
        DataError: the names say that all are for something else.
    """
    from datasets.data_files import DataFilesDict, get_data_patterns

    patterns = get_data_patterns(_escape(folder))
    splits = DataFilesDict.from_patterns(patterns, base_path=_escape(folder))
    chosen = {Path(name) for name in splits.get("train", ())}
    if training := [path for path in files if path in chosen or path.resolve() in chosen]:
        return training
    raise DataError(
        f"{folder}: a split 'train' expected, got {', '.join(map(str, splits))}, by the names of "
        f"the files ({names_of(files, folder)}); rename them"
    )


def _escape(path: Path) -> str:
    """A path as the datasets library takes it: its names are patterns."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))


def _stem(path: Path) -> str:
    return path.with_suffix("").stem if path.suffix.lower() in PACKED else path.stem


def _read_text(path: Path) -> str:
    try:
        if unpack := UNPACK.get(path.suffix.lower()):
            return unpack(path.read_bytes()).decode("utf-8-sig")
        return path.read_text(encoding="utf-8-sig")
    except Exception as error:  # of a decompressor or the decoder
        cause = explain_bytes(path) if isinstance(error, UnicodeDecodeError) else ""
        raise DataError(f"{path} cannot be read as text: {cause or error}") from error
