"""``dandelion privacy plan`` and the commands of a site's own files."""

import json
import os
from math import sqrt

import pytest
from small_config import SMALL
from typer.testing import CliRunner

from dandelion.cli.app import app
from dandelion.privacy.commands import read_epsilons
from dandelion.privacy.plan import plan_accuracy, plan_noise
from shared.base.errors import BudgetError, ConfigError
from shared.config.schema import Config
from shared.privacy.accounting import noise_for


def invoke(*words):
    return CliRunner().invoke(app, list(words))


def test_a_plan_has_the_noise_of_each_promise():
    pytest.importorskip("dp_accounting")
    config = Config(zo_batch_size=16, num_rounds=5, queries=4)
    plain, private = plan_noise(config, 1000, [float("inf"), 4.0])
    assert (plain.noise, plain.share, plain.rate_bits) == (0, 0, 6)
    assert private.noise == noise_for(4.0, 1e-5, 5, 6)
    assert private.share == private.noise * sqrt(4) / 16


def test_without_a_promise_nothing_is_counted():
    shown = invoke("privacy", "plan", "--examples", "1000", "--epsilon", "inf", "--json")
    (row,) = json.loads(shown.stdout)
    assert (row["epsilon"], row["privacy-noise"]) == ("inf", "0")


def test_slopes_and_a_run_are_measured_on_the_servers_data(tmp_path):
    pairs = [f"--set={key}={value}" for key, value in {**SMALL, "num-rounds": 1}.items()]
    shown = invoke(
        "privacy", "plan", "--slopes", "--accuracy", "--epsilon", "inf", "--json", *pairs
    )
    assert shown.exit_code == 0, shown.output
    assert "median slope" in shown.stderr
    assert '"held-out loss": "5.' in shown.stdout


def test_a_trial_of_a_promise_pays_for_no_data_of_this_user(tmp_path, monkeypatch):
    pytest.importorskip("dp_accounting")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    small = {**SMALL, "num-rounds": 1, "privacy-clip": 8, "local-steps": 1, "zo-batch-size": 2}
    config = Config({**small, "output-dir": str(tmp_path)})
    (row,) = plan_noise(config, 100, [1.0])
    assert plan_accuracy(config, row, tmp_path / "trial").loss > 0
    assert (tmp_path / "trial" / "state" / "dandelion" / "privacy" / "budget.sqlite").exists()
    assert not (tmp_path / "state").exists()
    assert os.environ["XDG_STATE_HOME"] == str(tmp_path / "state")


@pytest.mark.parametrize("text", ["", "2,x", "0", "-1", "nan"])
def test_wrong_promises_are_refused(text):
    with pytest.raises(ConfigError, match="--epsilon: numbers above 0"):
        read_epsilons(text)


def test_a_secret_is_made_and_replaced(tmp_path):
    home = str(tmp_path)
    assert invoke("client", "secret", "--home", home).exit_code == 0
    first = (tmp_path / "privacy" / "site.secret").read_bytes()
    invoke("client", "secret", "--home", home)
    assert (tmp_path / "privacy" / "site.secret").read_bytes() == first
    invoke("client", "secret", "--new", "--home", home)
    assert (tmp_path / "privacy" / "site.secret").read_bytes() != first


def test_a_home_without_a_budget_is_refused(tmp_path):
    shown = invoke("client", "budget", "--home", str(tmp_path / "none"))
    assert isinstance(shown.exception, BudgetError)
