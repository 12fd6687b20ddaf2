"""A federation over the wire: TLS, node keys, three nodes, and ``kill -9`` of each of its parts."""

import json

import pytest
from machines import last_round
from processes import Watch, mapped, until
from rich.console import Console
from small_tasks import kept_settings, task_settings
from three_nodes import SETTINGS, local_digest, public_folder, three_nodes, words_of

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
    federation.join("n0", *words_of(federation, 0))
    assert commands[-1].wait(400) == 0, federation.output_of("killed")
    assert federation.digest("killed") == local_digest(tmp_path, KILLS)
    assert [command.wait(120) for command in commands[:2]] == [2, 2]  # Flower noticed, and said so


def test_a_readout_over_the_wire_has_the_digest_of_every_engine(federation, tmp_path):
    """Whole shards by exact slopes on kept features, rates that follow the falls."""
    chosen = {
        **SETTINGS, **kept_settings("words", public_folder(federation) / "readout"),
        "queries": 8, "zo-batch-size": 0,
    }  # fmt: skip
    assert federation.run("readout", chosen).wait(400) == 0, federation.output_of("readout")
    summary = json.loads((federation.runs / "readout" / "summary.json").read_text())
    assert summary["refused_replies"] == 0
    assert summary["digest"] == local_digest(tmp_path, chosen)
    simulated = {**chosen, "output-dir": str(tmp_path), "run-name": "simulated"}
    folder = run_flower(Config.from_run_config(simulated), Console(quiet=True))
    assert json.loads((folder / "summary.json").read_text())["digest"] == summary["digest"]


def test_answers_are_learned_and_judged_over_the_wire(federation, tmp_path):
    """A chat model and a file of messages; sites write answers to their own held-out prompts."""
    pytest.importorskip("rouge_score", reason="the extra generation is not installed")
    public = public_folder(federation)
    public.mkdir(exist_ok=True)
    chats = {**SETTINGS, **task_settings("generation", public), "site-eval-fraction": 0.3}
    assert federation.run("answers", chats).wait(400) == 0, federation.output_of("answers")
    assert federation.digest("answers") == local_digest(tmp_path, chats)
    summary = json.loads((federation.runs / "answers" / "summary.json").read_text())
    assert summary["refused_replies"] == 0
    assert 0 <= summary["sites_rouge-l_last"] <= 1
