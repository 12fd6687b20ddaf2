"""``dandelion status`` shows what the ledger of a run knows, while it trains too."""

import os

from typer.testing import CliRunner

from dandelion.cli.app import app
from dandelion.engines.local import run_local
from shared.config.schema import Config

SETTINGS = {"num-rounds": 3, "num-clients": 2, "queries": 2, "max-samples": 40, "block-size": 16,
            "eval-blocks": 4, "save-model": False, "run-name": "shown"}  # fmt: skip


def shown(*words: str) -> str:
    done = CliRunner(env={**os.environ, "COLUMNS": "200"}).invoke(app, ["status", *words])
    assert done.exit_code == 0, done.exception
    return done.output


def test_a_run_is_shown_with_its_nodes_from_the_first_round_on(tmp_path):
    seen: list[str] = []
    config = Config.from_run_config({**SETTINGS, "output-dir": str(tmp_path)})
    folder = run_local(config, lambda report, round_: seen.append(shown(str(report.folder))))
    assert "run shown  round 0 of 3" in seen[0]
    assert "round 1 of 3" in seen[1]
    last = shown(str(folder))
    assert "round 3 of 3" in last
    assert "held out" in last
    for site in ("0", "1"):
        row = next(line for line in last.splitlines() if line.startswith(f"│ {site} "))
        assert [cell.strip() for cell in row.split("│")[2:5]] == ["cpu", "3", "0"]


def test_a_folder_without_a_ledger_is_named(tmp_path):
    done = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert done.exit_code != 0
    assert "no ledger there" in str(done.exception)
