"""A federation over the wire: TLS, node keys, three nodes, and ``kill -9`` of each of its parts."""

import json
import random

import pytest
import small_models
from machines import last_round
from processes import Watch, mapped, until
from rich.console import Console
from three_nodes import SETTINGS, local_digest, partition, three_nodes

from dandelion.engines.flower_simulation import run_flower
from shared.config.schema import Config

pytestmark = pytest.mark.deployment
KILLS = {**SETTINGS, "num-rounds": 10, "staleness": 1}


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with three_nodes(tmp_path_factory.mktemp("federation")) as started:
        yield started


def test_a_run_over_the_wire_has_the_digest_of_the_local_engine(federation, tmp_path):
    """And no process that Flower starts for a message loads what the guard has."""
    with Watch(federation.folder, "flwr-clientapp") as watch:
        assert federation.run("plain", SETTINGS).wait(400) == 0, federation.output_of("plain")
    assert federation.digest("plain") == local_digest(tmp_path, SETTINGS)
    assert len(watch.seen) >= 3 * 4  # of each node an introduction and three rounds
    assert not set().union(*watch.seen.values())
    (guard,) = federation.workers("n0")
    assert "libtorch" in mapped(guard)


@pytest.fixture
def reviews(tmp_path):
    """Settings of a readout on a tiny language model, with a folder of its texts."""
    drawn, words = random.Random(1), ("the", "film", "was", "it", "and", "plot", "a")
    lines = ["text,label"]
    for number in range(48):
        label = ("bad", "good")[number % 2]
        lines.append(f"{' '.join(drawn.choices(words, k=5))} {label},{label}")
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "train.csv").write_text("\n".join(lines) + "\n")
    of_data = {"task": "classification", "label-words": "bad, good", "block-size": 16}
    readout = {"scope": "words", "queries": 8, "zo-batch-size": 0, "step": "auto"}
    model, texts = small_models.causal(tmp_path / "model"), str(tmp_path / "reviews")
    given = {"model": model, "dataset": texts, "max-samples": 0, "keep-disk": 0}
    return {**SETTINGS, **of_data, **readout, **given}


def test_a_readout_on_kept_features_has_one_digest_on_every_engine(federation, reviews, tmp_path):
    """Exact slopes of features that each process computes for itself: none is off by a bit."""
    assert federation.run("readout", reviews).wait(400) == 0, federation.output_of("readout")
    config = Config.from_run_config({**reviews, "output-dir": str(tmp_path), "run-name": "flower"})
    simulated = json.loads((run_flower(config, Console(quiet=True)) / "summary.json").read_text())
    assert simulated["digest"] == federation.digest("readout") == local_digest(tmp_path, reviews)
    assert simulated["rounds"] == SETTINGS["num-rounds"]


def test_what_is_killed_changes_no_bit(federation, tmp_path):
    """The server process twice, the SuperLink once, a node with its guard in mid-round.

    A round needs all three sites, so requests are repeated until all have answered.
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
    assert commands[-1].wait(400) == 0, federation.output_of("killed")
    assert federation.digest("killed") == local_digest(tmp_path, KILLS)
    assert [command.wait(120) for command in commands[:2]] == [2, 2]  # Flower noticed, and said so
