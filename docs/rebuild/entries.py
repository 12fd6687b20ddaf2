"""The tables of a ledger: settings, entries and recorded digests."""

import sqlite3
import struct
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from .vector import SHAPES
from .words import Array, LayoutError

DEFAULTS: dict[str, Any] = {
    "seed": 1, "model": "byte-gpt", "dtype": "float32", "queries": 16, "eps": 0.001,
    "directions": "rademacher", "direction-rank": 1, "optimizer": "sgd", "momentum": 0.0,
    "weight-decay": 0.0, "beta1": 0.9, "beta2": 0.999, "adam-epsilon": 1e-8, "cautious": False,
    "mode": "zo", "scope": "full", "init-from": "", "topk-fraction": 0.01,
}  # fmt: skip
KNOWN = {
    "dtype": ("float32", "bfloat16"),
    "directions": ("rademacher", "hadamard", "lowrank"),
    "optimizer": ("sgd", "adam", "mudamw"),
    "init-from": ("",),
}


@dataclass(frozen=True)
class Entry:
    """One round as the ledger has it."""

    round: int
    rate: float
    slots: list[tuple[int, Array]]
    guide: float
    payload: bytes
    back_to: int | None

    @property
    def follows(self) -> int:
        """The round whose parameters it changes."""
        return self.round - 1 if self.back_to is None else self.back_to


def decode(data: bytes) -> Entry:
    """Read an entry's bytes.

    Raises:
        LayoutError: they are no entry, or its dense gradient was dropped.
    """
    magic, slots, round_, numbers, rate = struct.unpack_from("<HHIId", data)
    if crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise LayoutError(f"round {round_}: the checksum of the entry does not fit")
    if magic == 0xDE04:
        return Entry(round_, rate, [], 0.0, b"", numbers)
    if magic not in (0xDE01, 0xDE02):
        raise LayoutError(f"round {round_}: its dense gradient was dropped, or magic {magic:#x}")
    at, read = 20, []
    for _ in range(slots):
        (slot,) = struct.unpack_from("<I", data, at)
        read.append((slot, np.frombuffer(data, "<f4", numbers, at + 4)))
        at += 4 + 4 * numbers
    guide, payload = 0.0, b""
    if magic == 0xDE02:
        guide, length = struct.unpack_from("<dI", data, at)
        payload = data[at + 12 : at + 12 + length]
    return Entry(round_, rate, read, guide, payload, None)


def read_ledger(path: Path) -> tuple[dict[str, Any], list[Entry], dict[int, bytes]]:
    """Settings, entries by round, and recorded digests of a ledger.

    Raises:
        LayoutError: the file is no ledger, or a setting has a value that is not on the page.
    """
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        ((text,),) = connection.execute("SELECT value FROM head WHERE key = 'config'")
        entries = connection.execute("SELECT payload FROM entries ORDER BY round").fetchall()
        digests = dict(connection.execute("SELECT round, digest FROM digests"))
    except (sqlite3.Error, ValueError) as error:
        raise LayoutError(f"{path}: {error}") from error
    finally:
        connection.close()
    recorded = {key: value for key, value in tomllib.loads(text.decode()).items() if value != ""}
    settings = {**DEFAULTS, **recorded}
    known = {**KNOWN, "model": tuple(SHAPES)}
    for key, values in known.items():
        if settings[key] not in values:
            raise LayoutError(f"{key}: one of {', '.join(values)} expected, got {settings[key]}")
    if settings["mode"] == "fedavg":
        settings |= {"optimizer": "sgd", "momentum": 0.0, "weight-decay": 0.0}
    return settings, [decode(payload) for (payload,) in entries], digests
