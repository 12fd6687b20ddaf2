"""``dandelion privacy plan`` and the commands of a site's own files."""

import json
import os
from math import sqrt

import pytest
from small_config import SMALL
from typer.testing import CliRunner

from dandelion.cli.app import app
from dandelion.privacy.commands import as_private_run, read_numbers
from dandelion.privacy.plan import PlanRow, draw_table, plan_noise, spread_text
from dandelion.privacy.trials import Score, Trials, privacy_of
from shared.base.errors import BudgetError, ConfigError
from shared.config.schema import Config
from shared.privacy.accounting import noise_for
from shared.training.validate import configure

PRIVATE = {"privacy": "local", "privacy-noise": 1.0, "privacy-clip": 40.0}


def invoke(*words):
    return CliRunner().invoke(app, list(words))


def test_a_plan_has_the_noise_of_each_promise():
    pytest.importorskip("dp_accounting")
    config = Config(zo_batch_size=16, num_rounds=5, queries=4)
    plain, private = plan_noise(config, 1000, [float("inf"), 1.0])
    assert (plain.noise, plain.share, plain.rate_bits) == (0, 0, 6)
    assert private.noise == noise_for(1.0, 1e-5, 5, 6)
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


@pytest.mark.slow
def test_a_trial_of_a_promise_pays_for_no_data_of_this_user(tmp_path, monkeypatch):
    pytest.importorskip("dp_accounting")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    small = {**SMALL, "num-rounds": 1, "privacy-clip": 8, "local-steps": 1, "zo-batch-size": 2}
    config = Config({**small, "output-dir": str(tmp_path)})
    (row,) = plan_noise(config, 100, [0.5])
    (loss,) = Trials(config, tmp_path / "trial").measure(row).losses
    assert loss > 0
    assert (tmp_path / "trial" / "state" / "dandelion" / "privacy" / "budget.sqlite").exists()
    assert not (tmp_path / "state").exists()
    assert os.environ["XDG_STATE_HOME"] == str(tmp_path / "state")


def test_each_promise_takes_its_best_rate_and_the_seeds_after_the_first(tmp_path, monkeypatch):
    losses, asked_for = {0.1: 2.0, 0.2: 1.0, 0.4: 3.0}, []

    def train(self, epsilon, rate, seed):
        asked_for.append((epsilon, rate, seed))
        return Score(losses[rate] + seed, seed / 16)

    monkeypatch.setattr(Trials, "_train", train)
    trials = Trials(Config(seed=5), tmp_path, seeds=3, rates=(0.1, 0.2, 0.4))
    row = trials.measure(PlanRow(2.0, 1.0, 3, 0.1))
    assert (row.rate, row.losses, row.accuracies) == (0.2, (6.0, 7.0, 8.0), (0.3125, 0.375, 0.4375))
    assert asked_for == [(2.0, r, s) for r, s in ((0.1, 5), (0.2, 5), (0.4, 5), (0.2, 6), (0.2, 7))]


def test_the_row_without_privacy_is_a_run_without_privacy():
    private = configure({**SMALL, "local-steps": 1, **PRIVATE})
    plain = private.replace(**privacy_of(private, float("inf")))
    assert plain == configure({**SMALL, "local-steps": 1})
    assert private.replace(**privacy_of(private, 2.0)).privacy.epsilon == 2.0


def test_a_clip_may_be_planned_without_saying_that_the_run_is_private():
    assert as_private_run(["queries=4"]) == ["queries=4"]
    given = ["privacy-clip=4", "privacy-epsilon=3"]
    assert as_private_run(given) == ["privacy=local", "privacy-epsilon=1", *given]


def test_a_table_has_the_median_and_the_range_of_the_seeds():
    row = PlanRow(2.0, 1.0, 3, 0.1, 0.2, (1.5, 1.25, 1.0), (0.5, 0.75, 0.25))
    table = draw_table(Config(zo_batch_size=16), 100, [row])
    assert [next(iter(each.cells)) for each in table.columns[-3:]] == [
        "0.2", "1.2500 (1.0000 to 1.5000)", "50.0% (25.0% to 75.0%)"
    ]  # fmt: skip
    assert (spread_text([], ".1%"), spread_text([0.5], ".1%")) == ("-", "50.0%")


@pytest.mark.parametrize("text", ["", "2,x", "0", "-1", "nan"])
def test_lists_of_other_numbers_are_refused(text):
    with pytest.raises(ConfigError, match="--rates: numbers above 0"):
        read_numbers("--rates", text)


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
