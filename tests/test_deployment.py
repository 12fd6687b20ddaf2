"""A federation over the wire: TLS, node keys, three nodes, and what happens to real machines."""

import json
import os
import signal
from pathlib import Path

import pytest
from machines import Federation, descendants, last_round, named, rows, until

from dandelion.local import run_local
from shared.config import Config

pytestmark = pytest.mark.deployment
SETTINGS = {
    "num-rounds": 4, "num-clients": 3, "min-clients": 3, "queries": 2,
    "dataset": "topics", "partitioner": "iid", "max-samples": 6,
    "block-size": 16, "eval-blocks": 8, "snapshot-interval": 0, "save-model": False,
    "round-timeout": 300,
}  # fmt: skip


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    made = Federation(tmp_path_factory.mktemp("federation"))
    try:
        made.up()
        for number in range(3):
            made.join(f"n{number}", *partition(number))
        yield made
    finally:
        made.end()


def partition(number: int) -> list[str]:
    return ["--set", f"partition-id={number}", "--set", "num-partitions=3"]


def local_digest(folder: Path, **more: object) -> str:
    config = Config.from_run_config({**SETTINGS, **more, "output-dir": str(folder)})
    return json.loads((run_local(config) / "summary.json").read_text())["digest"]


def test_a_run_over_the_wire_has_the_digest_of_the_local_engine(federation, tmp_path):
    assert federation.run("plain", SETTINGS).wait(900) == 0, federation.said("plain")
    assert federation.digest("plain") == local_digest(tmp_path)


def test_a_run_that_fails_has_a_status_that_says_so(federation):
    settings = {**SETTINGS, "min-clients": 9, "num-clients": 9, "wait-timeout": 5}
    assert federation.run("failing", settings).wait(900) == 2
    assert "ended as finished:failed" in federation.said("failing")


def test_a_server_killed_twice_and_a_superlink_killed_once_change_no_bit(federation, tmp_path):
    settings = {**SETTINGS, "num-rounds": 8}
    folder, command = federation.runs / "killed", federation.run("killed", settings)
    for round_ in (1, 4):
        until(lambda r=round_: last_round(folder) >= r, f"round {round_}")
        for pid in named(descendants(federation.server.pid), "flwr-serverapp"):
            os.kill(pid, signal.SIGKILL)
        assert command.wait(900) == 2  # Flower notices after a minute
        command = federation.resume("killed")
        if round_ == 1:
            until(lambda: last_round(folder) >= 2, "round 2")
            for pid in named(descendants(federation.server.pid), "flower-superlink"):
                os.kill(pid, signal.SIGKILL)
    assert command.wait(900) == 0, federation.said("killed")
    assert federation.digest("killed") == local_digest(tmp_path, **{"num-rounds": 8})


def test_nodes_that_are_killed_cut_off_or_late_end_with_the_servers_digest(federation):
    settings = {**SETTINGS, "num-rounds": 14, "min-clients": 1, "round-timeout": 45}
    folder, command = federation.runs / "faults", federation.run("faults", settings)
    until(lambda: last_round(folder) >= 1, "round 1")
    federation.kill("n0")
    federation.proxies["n1"].cut()
    cut = last_round(folder)
    until(lambda: last_round(folder) >= cut + 2, "two rounds without it")
    federation.proxies["n1"].mend()
    federation.join("n0", *partition(0))
    until(lambda: last_round(folder) >= 6, "round 6")
    federation.join("late", "--set", "site=late", "--set", "num-partitions=3")
    assert command.wait(900) == 0, federation.said("faults")
    there = {site for (site,) in rows(folder, LAST)}
    assert there == {"0", "1", "2", "late"}  # a contribution counts only with the server's digest
    first = rows(folder, JOINED)[0]
    entries = sum(len(p) + 4 for (p,) in rows(folder, BEFORE.format(first[0])))
    assert 0 <= first[1] - entries <= 80  # a request's own bytes: no snapshot is that small


LAST = "SELECT site FROM contributions WHERE round = (SELECT max(round) FROM entries)"
JOINED = (
    "SELECT round, payload FROM traffic WHERE site = 'late' AND direction = 'down' "
    "AND kind != 'control' ORDER BY id LIMIT 1"
)
BEFORE = "SELECT payload FROM entries WHERE round < {}"


@pytest.mark.parametrize(
    ("name", "register", "other_ca", "reason"),
    [
        ("stranger", False, False, "Failed to activate SuperNode"),
        ("misled", True, True, "ertificate verify failed"),
    ],
)
def test_a_node_that_may_not_join_is_told_why(federation, name, register, other_ca, reason):
    ca = None
    if other_ca:
        other = Federation(federation.folder / "other")
        other.folder.mkdir()
        other.make_certificates()
        ca = other.certificates / "ca.crt"
    words = ["--patience", "10", "--set", f"site={name}"]
    federation.join(name, *words, ca=ca, register=register)
    assert federation.nodes[name].wait(400) == 2
    assert reason in federation.said(name)
    assert federation.proxies[name].counted()[1] < 20_000  # nothing of the model
