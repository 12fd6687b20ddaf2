"""The guide to sealed sums (sealed-sums.md), with its settings: five hospitals, five secrets."""

import json
import re
from pathlib import Path

import pytest
from federation import Network, federate, ledger_of
from small_config import small_config
from typer.testing import CliRunner

from client.site.node_config import NodeConfig
from client.site.replica_host import _hosts
from dandelion.api.ledgers import verify_ledger
from dandelion.cli.app import app
from shared.base.errors import StalledError

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "sealed-sums.md"
NAMES = [f"ward-{number}" for number in range(1, 6)]


def settings_of(command):
    """The ``--set`` pairs of a command on the page."""
    line = next(line for line in PAGE.read_text().splitlines() if line.startswith(command))
    pairs = (text.partition("=") for text in re.findall(r"--set (\S+)", line))
    return {key: json.loads(v) if v[0].isdigit() else v for key, _, v in pairs}


def key_line(folder, name):
    """What ``dandelion client key`` prints at a hospital."""
    words = ["client", "key", name, "--home", str(folder / name)]
    return CliRunner().invoke(app, words).output.strip()


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """The configs of five hospitals with own data, own secrets, and a roster that they brought."""
    pytest.importorskip("dp_accounting")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("server.rounds.sums.PATIENCE_S", 0.05)
    _hosts.clear()
    roster = tmp_path / "roster.toml"
    roster.write_text("[sites]\n" + "\n".join(key_line(tmp_path, name) for name in NAMES))
    configs = []
    for name in NAMES:
        data = tmp_path / f"data-{name}"
        data.mkdir()
        for number in range(12):
            words = f"{name} patient {number} was seen on day {number * 7} and went home. " * 2
            (data / f"note-{number}.txt").write_text(words)
        own = settings_of("dandelion client join") | {"site": name, "data": str(data)}
        own |= {"roster": str(roster), "privacy-home": str(tmp_path / name / "privacy")}
        NodeConfig.of(own)
        configs.append(own)
    yield configs
    _hosts.clear()


def run(folder, nodes, name="run", **changes):
    """Train with the page's settings."""
    own = settings_of("dandelion server run") | {"num-rounds": 2, "round-timeout": 0.3}
    config = small_config(folder, name, **{**own, "max-samples": 0, **changes})
    network = Network(config)
    for context, node in zip(network._contexts.values(), nodes, strict=True):
        context.node_config.clear()
        context.node_config.update(node)
    return config, federate(config, network)


def test_five_hospitals_train_on_sums_alone(tmp_path, nodes):
    config, result = run(tmp_path, nodes)
    assert result.rows["refusals"] == []
    assert {row[6] for row in result.rows["contributions"]} == {b""}
    with ledger_of(config) as ledger:
        assert verify_ledger(ledger).sums == 2
        assert {row.needed for row in ledger.sum_rows(1)} == {4}


def test_a_hospital_with_another_roster_is_left_out(tmp_path, nodes):
    other = tmp_path / "other.toml"
    other.write_text((tmp_path / "roster.toml").read_text() + f'\n"ward-9" = "{"ab" * 32}"\n')
    nodes[4]["roster"] = str(other)
    _, result = run(tmp_path, nodes)
    assert len(result.entries) == 2
    assert ("ward-5", "other roster") in {(row[2], row[3]) for row in result.rows["refusals"]}
    assert {row[2] for row in result.rows["contributions"]} == set(NAMES[:4])


def test_without_rosters_nothing_is_sent(tmp_path, nodes, caplog):
    for node in nodes:
        del node["roster"]
    with pytest.raises(StalledError, match="refused by policy: roster"):
        run(tmp_path, nodes)
    assert "has data of its own: sealed sums need a roster" in caplog.text


def test_a_run_without_sealed_sums_is_refused(tmp_path, nodes):
    with pytest.raises(StalledError, match="refused by policy: privacy"):
        run(tmp_path, nodes, privacy="local", privacy_colluders=1)
