"""Tensors by key in the files of a cache folder, appended by many processes and read by all.

Each process appends to a file of its own. Nothing is unpickled: a record is a header, a shape and
the bits. The first damaged or cut-off header ends what is read of its file.
"""

import fcntl
import logging
import os
import shutil
import struct
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

LOG = logging.getLogger("dandelion")
SUFFIX = ".tensors"

# A record. Integers are unsigned and little-endian, checksums are XXH3 of 64 bits.
#
#   0      4       5   6   8     24         32          40          40+8n        48+8n
#   | KEP1 | dtype | n | 0 | key | checksum of payload  | n sizes   | checksum   | payload |
#                                  | bytes of payload     | of shape  | of header  |
#
# Bytes 24-32 are the payload's length, bytes 32-40 its checksum.
HEADER = struct.Struct("<4sBB2x16sQQ")
MAGIC = b"KEP1"
DTYPES = (torch.float32, torch.bfloat16)  # a dtype's code is its index
WORD = 8


@dataclass(frozen=True, slots=True)
class Record:
    """Where a tensor's bits lie, and what they must be."""

    file: int  # descriptor
    offset: int
    size: int  # bytes
    checksum: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self) -> Tensor | None:
        """The tensor, or None if its bits are damaged."""
        payload = os.pread(self.file, self.size, self.offset)
        if len(payload) != self.size or xxhash.xxh3_64_intdigest(payload) != self.checksum:
            return None
        if not payload:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(bytearray(payload), dtype=self.dtype).view(self.shape)


@dataclass
class RecordFile:
    """A file of records, read from its beginning; it may grow meanwhile."""

    path: Path
    descriptor: int
    position: int = 0  # of the first record that was not read
    is_sound: bool = True  # no record up to there is damaged

    def scan(self) -> Iterator[tuple[bytes, Record]]:
        """Yield key and record of all that came since; stop at a damaged or cut-off one."""
        end = os.fstat(self.descriptor).st_size
        while self.is_sound and self.position < end:
            parts = self._header(end)
            if parts is None:
                self.is_sound = False
                LOG.warning(
                    "%s: damaged at byte %d of %d; what follows is not read", self.path,
                    self.position, end,
                )  # fmt: skip
                return
            key, record = parts
            self.position = record.offset + record.size
            yield key, record

    def _header(self, end: int) -> tuple[bytes, Record] | None:
        """Key and record at the position, or None if it is none or ends after ``end``."""
        fixed = os.pread(self.descriptor, HEADER.size, self.position)
        if len(fixed) < HEADER.size or fixed[:4] != MAGIC:
            return None
        _, code, rank, key, size, checksum = HEADER.unpack(fixed)
        rest = os.pread(self.descriptor, WORD * (rank + 1), self.position + HEADER.size)
        offset = self.position + HEADER.size + WORD * (rank + 1)
        if len(rest) < WORD * (rank + 1) or code >= len(DTYPES) or offset + size > end:
            return None
        *shape, check = struct.unpack(f"<{rank + 1}Q", rest)
        dtype = DTYPES[code]
        if check != xxhash.xxh3_64_intdigest(fixed + rest[:-WORD]):
            return None
        if size != prod(shape) * dtype.itemsize:
            return None
        return key, Record(self.descriptor, offset, size, checksum, tuple(shape), dtype)


def record_of(key: bytes, tensor: Tensor) -> bytes:
    """The bytes of a record: ``key`` (16 bytes) and a tensor on the CPU of one of DTYPES."""
    bits = tensor.detach().contiguous().reshape(-1)
    payload = bits.view(torch.uint8).numpy().tobytes() if bits.numel() else b""
    checksum = xxhash.xxh3_64_intdigest(payload)
    code, shape = DTYPES.index(tensor.dtype), tuple(tensor.shape)
    header = HEADER.pack(MAGIC, code, len(shape), key, len(payload), checksum)
    header += np.array(shape, "<u8").tobytes()
    return header + struct.pack("<Q", xxhash.xxh3_64_intdigest(header)) + payload


@dataclass
class TensorFolder:
    """The records of one folder under ``root``, whose folders together stay below ``most`` bytes.

    A folder in use is locked; the least recently used of the others are deleted for a new record.
    The first failure to write is a warning, and nothing more is written then.
    """

    root: Path
    name: str
    most: int
    _index: dict[bytes, Record] = field(default_factory=dict, repr=False)
    _files: dict[str, RecordFile] = field(default_factory=dict, repr=False)
    _own: int | None = None  # descriptor of the file that this process appends to
    _is_writable: bool = True
    _open: list[int] = field(default_factory=list, repr=False)  # descriptors

    def __post_init__(self) -> None:
        weakref.finalize(self, _close, self._open)
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._lock(fcntl.LOCK_EX):  # nobody deletes the folder before it is locked
                self.folder.mkdir(mode=0o700, exist_ok=True)
                lock = os.open(self.folder, os.O_RDONLY)
                self._open.append(lock)
                fcntl.flock(lock, fcntl.LOCK_SH)
                self._scan()
                os.utime(self.folder)
        except OSError as error:
            self._give_up(error)

    @property
    def folder(self) -> Path:
        """Where this folder's files lie."""
        return self.root / self.name

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def refresh(self) -> None:
        """Note the records that other processes have appended since."""
        try:
            with self._lock(fcntl.LOCK_SH):
                self._scan()
        except OSError as error:
            self._give_up(error)

    def read(self, key: bytes) -> Tensor | None:
        """The tensor of a key, or None if there is none or it is damaged (a warning)."""
        record = self._index.get(key)
        if record is None:
            return None
        try:
            tensor = record.read()
        except OSError as error:
            LOG.warning("%s: %s", self.folder, error)
            tensor = None
        if tensor is None:
            LOG.warning("%s: a damaged tensor is computed anew", self.folder)
            del self._index[key]
        return tensor

    def append(self, keys: Sequence[bytes], tensors: Sequence[Tensor]) -> None:
        """Append the tensors whose keys are new, as far as the limit allows."""
        new = [(k, t) for k, t in zip(keys, tensors, strict=True) if k not in self._index]
        if not new or not self._is_writable:
            return
        try:
            with self._lock(fcntl.LOCK_EX):
                self._append([record_of(key, tensor) for key, tensor in new])
                self._scan()
        except OSError as error:
            self._give_up(error)

    def _append(self, records: list[bytes]) -> None:
        """Write what there is room for; a part of a record is cut off again."""
        room = self._make_room(sum(map(len, records)))
        fitting = [r for r, end in zip(records, _ends(records), strict=True) if end <= room]
        if len(fitting) < len(records):
            self._is_writable = False
            LOG.warning(
                "%s is at its limit of %d MiB (keep-disk): further tensors are not stored",
                self.root, self.most >> 20,
            )  # fmt: skip
        if not fitting:
            return
        file = self._own_file()
        start = os.fstat(file).st_size
        try:
            _write(file, b"".join(fitting))
        except OSError:
            os.ftruncate(file, start)
            raise

    def _own_file(self) -> int:
        """The descriptor of the file that this process appends to."""
        if self._own is None:
            path = self.folder / f"{time.time_ns():020d}-{os.getpid()}{SUFFIX}"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._own = os.open(path, flags, 0o600)
            self._open.append(self._own)
            self._files[path.name] = RecordFile(path, self._own)
        return self._own

    def _scan(self) -> None:
        """Index what is new in all files; of two records with one key the newer file's counts."""
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            if path.name not in self._files:
                descriptor = os.open(path, os.O_RDONLY)
                self._open.append(descriptor)
                self._files[path.name] = RecordFile(path, descriptor)
            self._index.update(self._files[path.name].scan())

    def _make_room(self, need: int) -> int:
        """Bytes that may still be written, after old folders were deleted if it must be."""
        folders = sorted(filter(Path.is_dir, self.root.iterdir()), key=_last_use)
        room = self.most - sum(map(_bytes_in, folders))
        for folder in folders:
            if room >= need:
                break
            if folder.name != self.name:
                room += _delete(folder)
        return room

    @contextmanager
    def _lock(self, how: int) -> Iterator[None]:
        """Hold the lock of all folders; it ends with the process that holds it."""
        root = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(root, how)
            yield
        finally:
            os.close(root)

    def _give_up(self, error: OSError) -> None:
        if self._is_writable:
            LOG.warning("nothing more is stored in %s: %s", self.folder, error)
        self._is_writable = False


def _ends(records: Sequence[bytes]) -> Iterator[int]:
    end = 0
    for record in records:
        end += len(record)
        yield end


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _last_use(folder: Path) -> int:
    return folder.stat().st_mtime_ns


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _delete(folder: Path) -> int:
    """Delete a folder that no process uses; return how many bytes that freed."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    else:
        before = _bytes_in(folder)
        shutil.rmtree(folder, ignore_errors=True)
        return before - (_bytes_in(folder) if folder.is_dir() else 0)
    finally:
        os.close(lock)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
