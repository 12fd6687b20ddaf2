"""Writes a run's scalars from its ledger as a TensorBoard event file, without TensorBoard."""

import struct
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path

from server.ledger.reader import LedgerReader
from server.ledger.run_folder import LEDGER, read_config
from server.reporting.round_worth import worth_of_round
from server.reporting.sample_pages import page_of, read_samples
from shared.config.schema import Config

# record: | length u64 | masked crc u32 of the length | data | masked crc u32 of the data |
# data: an ``Event`` of TensorFlow's event.proto, whose four fields used here are encoded by hand
FILE_NAME = "events.out.tfevents.{:010d}.dandelion"
VERSION = b"brain.Event:2"
POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected
TAGS = ("loss", "gradient norm", "learning rate", "clients", "bytes up", "bytes down", "seconds")


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


def write(folder: Path, follow_s: float = 0.0) -> Path:
    """Write all rounds of a run; with ``follow_s``, also new ones every so many seconds, until ^C.

    Raises:
        LedgerError: the folder has no ledger, or a damaged one.
    """
    path, after = folder / "tensorboard" / FILE_NAME.format(int(time.time())), (0, 0)
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        config = read_config(ledger)
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.write(record(event(time.time())))
            while True:
                before = after[1]
                data, after = _since(ledger, config, after)
                file.write(data + _texts(folder, ledger, before))
                file.flush()
                if not follow_s:
                    return path
                time.sleep(follow_s)


def _since(
    ledger: LedgerReader, config: Config, after: tuple[int, int]
) -> tuple[bytes, tuple[int, int]]:
    """Records after the given round and evaluation, and the new last ones of both."""
    parts: list[bytes] = []
    round_, evaluated = after
    for metrics in ledger.metrics(after[0]):
        round_, seconds = metrics.round, datetime.fromisoformat(metrics.timestamp).timestamp()
        parts += [
            record(event(seconds, round_, f"round/{tag}", value))
            for tag in TAGS
            if (value := getattr(metrics, tag.replace(" ", "_"))) is not None
        ]
        if (worth := worth_of_round(config, ledger, round_)) is not None:
            for tag, value in (("signal", worth.signal), ("site noise", worth.noise)):
                parts.append(record(event(seconds, round_, f"round/{tag}", value)))
    for evaluated, loss in ledger.evaluations(after[1]):
        if (metrics_then := ledger.metrics_of(evaluated)) is not None:
            seconds = datetime.fromisoformat(metrics_then.timestamp).timestamp()
            parts.append(record(event(seconds, evaluated, "held out/loss", loss)))
    return b"".join(parts), (round_, evaluated)


def _texts(folder: Path, ledger: LedgerReader, after: int) -> bytes:
    """Records of the samples of evaluations after round ``after``."""
    parts: list[bytes] = []
    for round_, _ in ledger.evaluations(after):
        for record_ in read_samples(folder):
            metrics = ledger.metrics_of(round_)
            if record_["round"] == round_ and metrics is not None:
                seconds = datetime.fromisoformat(metrics.timestamp).timestamp()
                parts.append(record(text_event(seconds, round_, "samples", page_of([record_]))))
    return b"".join(parts)


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
