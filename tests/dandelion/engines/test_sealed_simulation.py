"""Sealed sums under Flower's simulation: the numbers and the digest of the local engine."""

import json

import pytest
from rich.console import Console
from sealed_nodes import SETTINGS, run_twin

from dandelion.api.ledgers import verify_ledger
from dandelion.engines.flower_simulation import run_flower
from server.ledger.ledger import Ledger
from shared.config.schema import Config


@pytest.mark.slow
def test_sealed_sums_under_flowers_simulation_give_the_digest_of_the_local_engine(
    tmp_path, monkeypatch
):  # fmt: skip
    """Ray moves sites between processes; all have one secret, and one roster made of it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    more = {"num-clients": 4, "output-dir": str(tmp_path), "run-name": "flower"}
    folder = run_flower(Config.from_run_config({**SETTINGS, **more}), Console(quiet=True))
    ledger = Ledger.open(folder / "ledger.sqlite")
    assert verify_ledger(ledger).sums == SETTINGS["num-rounds"]
    assert [len(ledger.sum_rows(round_)) for round_ in (1, 2)] == [4, 4]
    ledger.close()
    twin = run_twin(tmp_path / "twins", folder)
    assert json.loads((folder / "summary.json").read_text())["digest"] == twin.digest
