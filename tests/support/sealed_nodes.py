"""Sites with secrets and a roster of their own, and the twin of their run in this process."""

import json
import re
import secrets
from pathlib import Path

import pytest
from federation import Network, federate
from typer.testing import CliRunner

from client.site.replica_host import _hosts
from dandelion.cli.app import app
from server.ledger.ledger import Ledger
from server.ledger.run_folder import read_config
from shared.training.validate import configure

SMALL = {
    "num-rounds": 2, "queries": 2, "block-size": 16, "eval-blocks": 4, "zo-batch-size": 2,
    "learning-rate": 0.006, "threads": 1, "snapshot-interval": 0, "save-model": False,
    "keep-disk": 0, "preflight-rounds": 0,
}  # fmt: skip
SETTINGS = {
    **SMALL, "privacy": "shared", "privacy-noise": 1.0, "privacy-clip": 40.0,
    "privacy-committee": 4, "dataset": "topics", "max-samples": 8, "partitioner": "iid",
}  # fmt: skip
TWIN = {"run-name": "twin", "round-timeout": 0.3}  # sites in this process have answered by then
NAMES = [f"ward-{number}" for number in range(1, 5)]


def key_line(home: Path, name: str) -> str:
    """What ``dandelion client key`` prints at a site; its secret is made if there is none."""
    done = CliRunner().invoke(app, ["client", "key", name, "--home", str(home)])
    assert done.exit_code == 0, done.output
    return done.output.strip()


def write_roster(path: Path, homes: dict[str, Path]) -> Path:
    """A roster of the sites in these homes."""
    path.write_text("[sites]\n" + "\n".join(key_line(homes[name], name) for name in homes))
    return path


def make_notes(folder: Path) -> Path:
    """Data of a site's own."""
    folder.mkdir()
    for number in range(12):
        words = f"{folder.name} patient {number} was seen on day {number * 7} and went home. "
        (folder / f"note-{number}.txt").write_text(2 * words)
    return folder


def typed_settings(page: Path, command: str) -> dict[str, object]:
    """The ``--set`` pairs of a command on a page."""
    line = next(line for line in page.read_text().splitlines() if line.startswith(command))
    pairs = (text.partition("=") for text in re.findall(r"--set (\S+)", line))
    return {key: json.loads(v) if v[0].isdigit() else v for key, _, v in pairs}


def run_twin(folder: Path, run: Path, nodes: list[dict[str, object]] | None = None, grid=Network):
    """Train in this process by the settings and the name of a run that is done.

    Rows, noise and polynomials follow from secrets and the run's name, so they are the same.

    Args:
        folder: of the twin's own files.
        run: folder of the run.
        nodes: configs of its nodes; None: those of the local engine.
        grid: makes the network of a configuration.
    """
    ledger = Ledger.open(run / "ledger.sqlite")
    settings, name = read_config(ledger).to_run_config(), ledger.header("run")
    ledger.close()
    config = configure({**settings, **TWIN, "output-dir": str(folder)})
    network = grid(config)
    for context, node in zip(network._contexts.values(), nodes or (), strict=bool(nodes)):
        context.node_config.clear()
        context.node_config.update(node)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "token_bytes", lambda count: name[:count])
        patch.setattr("server.rounds.sums.PATIENCE_S", 0.05)
        _hosts.clear()
        try:
            return federate(config, network)
        finally:
            _hosts.clear()
