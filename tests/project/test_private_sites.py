"""The walk-through of private sites, with the page's settings, in one process."""

import json
import re
from pathlib import Path

import pytest
from federation import Network, federate
from small_config import small_config
from typer.testing import CliRunner

from client.privacy.budget import BudgetLedger
from client.site.node_config import NodeConfig
from client.site.replica_host import forget_hosts
from dandelion.cli.app import app
from shared.base.errors import StalledError

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "private-sites.md"


def settings_of(command):
    """The ``--set`` pairs of a command on the page."""
    line = next(line for line in PAGE.read_text().splitlines() if line.startswith(command))
    pairs = (text.partition("=") for text in re.findall(r"--set (\S+)", line))
    return {key: json.loads(v) if v[0].isdigit() else v for key, _, v in pairs}


def make_data(folder, name):
    """A site's folder: its own texts, long enough for a hundred blocks."""
    own = folder / name
    own.mkdir()
    for number in range(12):
        words = f"{name} patient {number} was seen on day {number * 7} and went home. " * 2
        (own / f"note-{number}.txt").write_text(words)
    return str(own)


@pytest.fixture
def homes(tmp_path, monkeypatch):
    """The configs of both sites, as ``client join`` makes them of the page's commands."""
    pytest.importorskip("dp_accounting")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    forget_hosts()
    configs = []
    for name in ("ward-3", "ward-4"):
        own = settings_of("dandelion client join")
        own |= {"site": name, "data": make_data(tmp_path, name)}
        own["privacy-home"] = str(tmp_path / f"home-{name}" / "privacy")
        NodeConfig.of(own)
        configs.append(own)
    yield configs
    forget_hosts()


def run(folder, name, homes):
    """Train with the page's settings."""
    own = settings_of("dandelion server run")
    config = small_config(folder, name, **own, max_samples=0)
    network = Network(config)
    for context, node in zip(network._contexts.values(), homes, strict=True):
        context.node_config.clear()
        context.node_config.update(node)
    return federate(config, network)


@pytest.mark.slow
def test_two_runs_fit_and_the_third_is_refused_for_its_budget(tmp_path, homes, caplog):
    assert len(run(tmp_path, "first", homes).entries) == 20
    forget_hosts()
    assert len(run(tmp_path, "second", homes).entries) == 20
    assert "of 2 at delta 1e-05 · unit: one example, added or removed" in caplog.text
    forget_hosts()
    with pytest.raises(StalledError):
        run(tmp_path, "third", homes)
    assert "refused: error (PolicyError: refused by policy: max-epsilon)" in caplog.text
    home = Path(homes[0]["privacy-home"]).resolve()
    assert home.stat().st_mode & 0o077 == 0
    shown = CliRunner().invoke(
        app, ["client", "budget", "--home", str(home.parent), "--max-epsilon", "2", "--json"]
    )
    (row,) = json.loads(shown.stdout)
    assert row["name"] == homes[0]["data"]
    assert 1.6 < row["epsilon"] <= row["max-epsilon"] == 2
    assert [each["rounds"] for each in row["runs"]][:2] == [20, 20]
    table = CliRunner().invoke(
        app, ["client", "budget", "--home", str(home.parent), "--max-epsilon", "2"]
    )
    assert f"epsilon {row['epsilon']:.3g} of 2 at delta" in " ".join(table.stdout.split())


def test_data_that_have_grown_are_refused_until_they_are_adopted(tmp_path, homes, caplog):
    run(tmp_path, "first", homes)
    forget_hosts()
    (Path(homes[0]["data"]) / "note-99.txt").write_text("one more patient was seen. " * 20)
    with pytest.raises(StalledError, match="refused by policy: budget"):
        run(tmp_path, "second", homes)
    assert "budget adopt" in caplog.text
    home = Path(homes[0]["privacy-home"]).resolve()
    done = CliRunner().invoke(
        app, ["client", "budget", "adopt", homes[0]["data"], "--home", str(home.parent)]
    )
    assert "inherits what set 1 has paid" in done.output
    forget_hosts()
    assert len(run(tmp_path, "third", homes).entries) == 20
    budget = BudgetLedger(home)
    assert sum(each.times for each in budget.spent(2)) == 40
