"""TensorBoard's event files, written without TensorBoard."""

import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from server.reporting.sample_pages import page_of, read_samples
from server.tracking.tracker import TRACKERS, TrackedPoint, TrackedRun

# record: | length u64 | masked crc u32 of the length | data | masked crc u32 of the data |
# data: an ``Event`` of TensorFlow's event.proto, whose four fields used here are encoded by hand
FOLDER = "tensorboard"
FILE_NAME = "events.out.tfevents.{:010d}.dandelion"
VERSION = b"brain.Event:2"
POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected


@TRACKERS.register("tensorboard")
class TensorBoard:
    """Writes one event file; of a run that is resumed, all rounds anew from the ledger."""

    def __init__(self) -> None:
        self.path, self._folder = Path(), Path()
        self._file: BinaryIO | None = None

    def start(self, run: TrackedRun) -> int:
        folder = run.folder / FOLDER
        folder.mkdir(exist_ok=True)
        for former in folder.glob(FILE_NAME.format(0).replace("0" * 10, "*")):
            with suppress(FileNotFoundError):  # else TensorBoard would draw rounds twice
                former.unlink()
        self._folder = run.folder
        self.path = folder / FILE_NAME.format(int(time.time()))
        self._file = self.path.open("wb")
        self._file.write(record(event(time.time())))
        return -1

    def log(self, point: TrackedPoint) -> None:
        if self._file is not None:
            self._file.write(b"".join((*records_of(point), *text_records_of(point, self._folder))))
            self._file.flush()

    def finish(self) -> None:
        if self._file is not None:
            self._file.close()


def records_of(point: TrackedPoint) -> Iterable[bytes]:
    """A record for each number of a round."""
    return (
        record(event(point.seconds, point.round, tag, value)) for tag, value in point.values.items()
    )


def text_records_of(point: TrackedPoint, folder: Path) -> Iterable[bytes]:
    """A record of what the model wrote, if a round was evaluated and the run has samples."""
    records = read_samples(folder) if "held out/loss" in point.values else []
    return (
        record(text_event(point.seconds, point.round, "samples", page_of([each])))
        for each in records
        if each["round"] == point.round
    )


def crc32c(data: bytes) -> int:
    """CRC-32C, computed bit by bit: events are short."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def record(data: bytes) -> bytes:
    """Frame the bytes of an event as drawn above."""
    length = struct.pack("<Q", len(data))
    return length + _mask_crc(length) + data + _mask_crc(data)


def event(seconds: float, step: int = 0, tag: str = "", value: float = 0.0) -> bytes:
    """Encode one scalar of a round; without a tag, the event that opens a file."""
    prefix = b"\x09" + struct.pack("<d", seconds) + b"\x10" + _varint(step)
    if not tag:
        return prefix + b"\x1a" + _prefix_length(VERSION)
    scalar = b"\x0a" + _prefix_length(tag.encode()) + b"\x15" + struct.pack("<f", value)
    return prefix + b"\x2a" + _prefix_length(b"\x0a" + _prefix_length(scalar))


def text_event(seconds: float, step: int, tag: str, text: str) -> bytes:
    """Encode a text of a round for TensorBoard's plugin ``text``, which shows Markdown."""
    plugin = b"\x0a" + _prefix_length(b"\x0a" + _prefix_length(b"text"))
    one = b"\x12" + _prefix_length(b"\x08\x01")  # a dimension of size 1
    string = b"\x42" + _prefix_length(text.encode("utf-8", "replace"))
    tensor = b"\x08\x07\x12" + _prefix_length(one) + string  # 7: DT_STRING
    value = b"\x0a" + _prefix_length(tag.encode())
    value += b"\x42" + _prefix_length(tensor) + b"\x4a" + _prefix_length(plugin)
    prefix = b"\x09" + struct.pack("<d", seconds) + b"\x10" + _varint(step)
    return prefix + b"\x2a" + _prefix_length(b"\x0a" + _prefix_length(value))


def _mask_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _prefix_length(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
