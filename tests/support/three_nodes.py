"""A server and three nodes over TLS, and the settings that their runs share."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from machines import Federation
from small_config import DATA

from dandelion.engines.local import run_local
from shared.config.schema import Config

SETTINGS = {
    "num-rounds": 3, "num-clients": 3, "min-clients": 3, "queries": 2,
    **DATA, "snapshot-interval": 0, "save-model": False,
    "round-timeout": 300, "max-skipped-rounds": 100,
}  # fmt: skip


def partition(number: int, of: int = 3) -> list[str]:
    return ["--set", f"partition-id={number}", "--set", f"num-partitions={of}"]


def local_digest(folder: Path, settings: dict[str, object]) -> str:
    config = Config.from_run_config({**settings, "output-dir": str(folder)})
    return json.loads((run_local(config) / "summary.json").read_text())["digest"]


def public_folder(federation: Federation) -> Path:
    """Where models and data lie that the policy of every node lets a run name."""
    return federation.folder / "public"


def words_of(federation: Federation, number: int) -> list[str]:
    """What node ``number`` joins with, and joins with again: its third, and what runs may name."""
    return [*partition(number), "--set", f"allow-paths={public_folder(federation)}/*"]


@contextmanager
def three_nodes(folder: Path) -> Iterator[Federation]:
    """A server and three nodes that have joined, each with its third of the data.

    The last node runs Flower's programs unpatched. Runs may name what is in ``public_folder``.
    """
    federation = Federation(folder)
    try:
        federation.up()
        for number in range(3):
            words = words_of(federation, number)
            federation.join(f"n{number}", *words, *["--stock"] * (number == 2))
        yield federation
    finally:
        federation.end()
