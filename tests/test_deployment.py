"""A federation over the wire: TLS, node keys, three nodes, and ``kill -9`` of each of its parts."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from machines import Federation, last_round
from processes import Watch, mapped, until

from dandelion.local import run_local
from shared.config import Config

pytestmark = pytest.mark.deployment
SETTINGS = {
    "num-rounds": 3, "num-clients": 3, "min-clients": 3, "queries": 2,
    "dataset": "topics", "partitioner": "iid", "max-samples": 6,
    "block-size": 16, "eval-blocks": 8, "snapshot-interval": 0, "save-model": False,
    "round-timeout": 300, "max-skipped-rounds": 100,
}  # fmt: skip
KILLS = {**SETTINGS, "num-rounds": 10, "staleness": 1}


def partition(number: int, of: int = 3) -> list[str]:
    return ["--set", f"partition-id={number}", "--set", f"num-partitions={of}"]


def local_digest(folder: Path, settings: dict[str, object]) -> str:
    config = Config.from_run_config({**settings, "output-dir": str(folder)})
    return json.loads((run_local(config) / "summary.json").read_text())["digest"]


@contextmanager
def three_nodes(folder: Path) -> Iterator[Federation]:
    """A server and three nodes that have joined, each with its third of the data.

    The last one runs Flower's programs as they are.
    """
    made = Federation(folder)
    try:
        made.up()
        for number in range(3):
            made.join(f"n{number}", *partition(number), *["--stock"] * (number == 2))
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with three_nodes(tmp_path_factory.mktemp("federation")) as made:
        yield made


def test_a_run_over_the_wire_has_the_digest_of_the_local_engine(federation, tmp_path):
    """And no process that Flower starts for a message loads what the worker has."""
    with Watch(federation.folder, "flwr-clientapp") as watch:
        assert federation.run("plain", SETTINGS).wait(400) == 0, federation.said("plain")
    assert federation.digest("plain") == local_digest(tmp_path, SETTINGS)
    assert len(watch.seen) >= 3 * 4  # of each node an introduction and three rounds
    assert not set().union(*watch.seen.values())
    (worker,) = federation.workers("n0")
    assert "libtorch" in mapped(worker)


def test_what_is_killed_changes_no_bit(federation, tmp_path):
    """The server process twice, the SuperLink once, a node with its worker in mid-round.

    A round needs all three sites, so each is asked again until all have answered.
    """
    folder, commands = federation.runs / "killed", [federation.run("killed", KILLS)]
    for round_ in (1, 4):
        until(lambda r=round_: last_round(folder) >= r, f"round {round_}")
        federation.kill_server("flwr-serverapp")
        commands.append(federation.resume("killed"))
    until(lambda: last_round(folder) >= 6, "round 6")
    federation.kill_server("flower-superlink")
    federation.kill("n0")
    federation.join("n0", *partition(0))
    assert commands[-1].wait(400) == 0, federation.said("killed")
    assert federation.digest("killed") == local_digest(tmp_path, KILLS)
    assert [command.wait(120) for command in commands[:2]] == [2, 2]  # Flower noticed, and said so
