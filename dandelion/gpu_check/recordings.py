"""Small ledgers made on one device and replayed on another to the same digests."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from shared.base.errors import DataError
from shared.base.options import Value
from shared.config.schema import Config
from shared.estimation.two_point import two_point
from shared.protocol.entry import Entry, SlotDifferences
from shared.randomness.streams import SHARED_SLOT, direction_keys
from shared.training.oracle import Oracle

RECORDED = Path(__file__).with_name("recorded.json")  # made on a CPU by ``make recordings``
ROUNDS, BATCH, LENGTH = 6, 2, 32
SMALL: Mapping[str, Value] = {"model": "byte-gpt", "queries": 4, "block-size": LENGTH}
CASES: Mapping[str, Mapping[str, Value]] = {
    "rademacher, sgd": {},
    "rademacher, sgd with momentum": {"momentum": 0.9, "learning-rate": 0.002},
    "lowrank, sgd": {"directions": "lowrank", "direction-rank": 2},
    "rademacher, adam": {"optimizer": "adam", "learning-rate": 0.001},
    "rademacher, mudamw": {"optimizer": "mudamw", "learning-rate": 0.001},
    "rademacher, bfloat16": {"dtype": "bfloat16", "eps": 0.01},
    "rademacher, bfloat16, adam": {
        "dtype": "bfloat16",
        "eps": 0.01,
        "optimizer": "adam",
        "learning-rate": 0.001,
    },
}


@dataclass(frozen=True)
class Recording:
    """The entries of a few rounds in hexadecimal, and the digest of the parameters after each."""

    case: str
    settings: Mapping[str, Value]
    device: str  # where the losses were measured
    entries: list[str]
    digests: list[str]  # of rounds 0 to ROUNDS


def make(case: str, device: str) -> Recording:
    """Train ``byte-gpt`` for a few rounds on a device: measure, make an entry, apply it."""
    settings = {**SMALL, **CASES[case]}
    config = Config({**settings, "device": device})
    oracle, entries = Oracle.of(config), list[str]()
    digests = [oracle.replica.digest().hex()]
    for round_ in range(1, ROUNDS + 1):
        entry = _measure(oracle, config, round_)
        entries.append(entry.encode().hex())
        oracle.replica.apply([entry])
        digests.append(oracle.replica.digest().hex())
    return Recording(case, settings, device, entries, digests)


def _measure(oracle: Oracle, config: Config, round_: int) -> Entry:
    count = BATCH * LENGTH
    numbers = torch.arange(round_ * count, (round_ + 1) * count).view(BATCH, LENGTH)
    blocks, queries = numbers * 7919 % 256, config.zo.queries
    keys = direction_keys(config.training.seed, round_, SHARED_SLOT, 0, queries)
    measured = two_point(lambda query: oracle.loss(blocks), oracle.perturber, keys, config.zo.eps)
    slot = SlotDifferences(SHARED_SLOT, measured)
    return Entry(round_, config.optimizer.rate, (slot,))


def replay(recording: Recording, device: str) -> list[str]:
    """The digests of rounds 0 to ROUNDS that a device computes from a recording's entries."""
    config = Config({**recording.settings, "device": device})
    replica = Oracle.of(config).replica
    entries = [Entry.decode(bytes.fromhex(text)) for text in recording.entries]
    return [replica.digest().hex(), *(d.hex() for _, d in replica.apply_with_digests(entries))]


def first_difference(recording: Recording, device: str) -> str:
    """Say in which round a device leaves a recording, or an empty string."""
    digests = replay(recording, device)
    pairs = zip(recording.digests, digests, strict=True)
    rounds = (number for number, (expected, own) in enumerate(pairs) if expected != own)
    at = next(rounds, None)
    if at is None:
        return ""
    return f"round {at}: digest {recording.digests[at]} expected, this device has {digests[at]}"


def read(path: Path = RECORDED) -> Iterator[Recording]:
    """The recordings of a file, in order.

    Raises:
        DataError: the file holds something else.
    """
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text())
        yield from [Recording(**row) for row in rows]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: recordings of dandelion gpu-check expected ({error})") from error


def write(recordings: list[Recording], path: Path = RECORDED) -> None:
    """Write recordings as JSON."""
    path.write_text(json.dumps([asdict(each) for each in recordings], indent=1) + "\n")


def main() -> None:
    """Make the recordings of the package anew, on the CPU."""
    write([make(case, "cpu") for case in CASES])


if __name__ == "__main__":
    main()
