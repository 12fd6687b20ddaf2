"""Settings that cannot work are refused before a round, bad ones flagged, good ones suggested."""

import json

import numpy as np
import pytest
import torch
from federation import config, federate, folder_of
from typer.testing import CliRunner

from dandelion.cli.app import app
from server.preflight.judge import lasting_rate, preflight, search_rate
from server.preflight.probe import Probe, split_examples
from shared.base.errors import ConfigError
from shared.config.schema import Config
from shared.training.corpus import Corpus
from shared.training.oracle import Oracle


def run_preflight(chosen):
    oracle = Oracle.of(chosen)
    return preflight(chosen, oracle, Corpus.of(chosen, oracle.language_model).evaluation())


def probe_of(chosen):
    oracle = Oracle.of(chosen)
    examples = Corpus.of(chosen, oracle.language_model).evaluation()
    return Probe(chosen, oracle, *split_examples(examples, 8))


@pytest.mark.parametrize(
    ("eps", "cause"), [(1e-10, "rounding drowns it"), (0.6, "curvature bends it")]
)
def test_an_eps_that_cannot_work_is_refused_with_numbers(tmp_path, eps, cause):
    result = run_preflight(config(tmp_path, eps=eps))
    assert result.verdict == "refused"
    (reason,) = result.reasons
    assert f"eps = {eps:g}: a loss difference is " in reason
    assert cause in reason
    assert 1e-6 <= result.suggestion()["eps"] <= 1e-2
    assert (
        run_preflight(config(tmp_path, eps=result.suggested_eps)).suggested_eps
        == result.suggested_eps
    )


@pytest.mark.parametrize("eps", [1e-10, 0.6])
def test_an_eps_that_exact_slopes_do_not_use_is_not_judged(tmp_path, eps):
    result = run_preflight(config(tmp_path, eps=eps, estimator="exact", queries=8))
    assert result.verdict == "fine"
    assert "eps" not in result.suggestion()
    assert result.gradient_norm > 0


def test_settings_that_are_fine_are_left_alone(tmp_path):
    result = run_preflight(config(tmp_path, queries=8, learning_rate=1e-2))
    assert (result.verdict, result.reasons, result.suggestion()) == ("fine", [], {})
    assert result.eps[0].signal_to_noise > 10
    assert 0 < result.batch_share < 1


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "word"), [(3.0, "diverge"), (1e-6, "take long")])
def test_a_bad_rate_is_flagged_and_a_better_one_named(tmp_path, rate, word):
    result = run_preflight(config(tmp_path, queries=8, learning_rate=rate))
    assert result.verdict == "doubtful"
    assert word in result.reasons[0]
    assert 1e-3 < result.suggestion()["learning-rate"] < 0.1


def test_rounds_that_backpropagate_have_a_rate_of_their_own(tmp_path):
    result = run_preflight(config(tmp_path, mode="calibrate", bp_learning_rate=1e4, queries=8))
    assert [rates.key for rates in result.rates] == ["learning-rate", "bp-learning-rate"]
    assert result.suggestion()["bp-learning-rate"] < 1e2
    result = run_preflight(config(tmp_path, mode="fo", learning_rate=0.2))
    assert ([rates.key for rates in result.rates], result.eps) == (["learning-rate"], [])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_trying_things_out_changes_no_bit(tmp_path, optimizer):
    momentum = 0.9 if optimizer == "sgd" else 0.0
    chosen = config(tmp_path, optimizer=optimizer, momentum=momentum, learning_rate=1e-3)
    oracle = Oracle.of(chosen)
    before = oracle.replica.model.flat.clone()
    state = {name: value.clone() for name, value in oracle.replica.optimizer.state().items()}
    preflight(chosen, oracle, Corpus.of(chosen, oracle.language_model).evaluation())
    assert torch.equal(oracle.replica.model.flat, before)
    for name, value in oracle.replica.optimizer.state().items():
        assert torch.equal(value, state[name])


def test_the_noise_is_that_of_the_loss(tmp_path, monkeypatch):
    """What is added to a smooth loss is found again, within the factor that few values allow."""
    probe, chance = probe_of(config(tmp_path)), np.random.default_rng(1)
    assert probe.noise() < 1e-6
    real = Oracle.loss
    monkeypatch.setattr(Oracle, "loss", lambda *a: real(*a) + 1e-4 * chance.standard_normal())
    assert 3e-5 < probe.noise(8) < 3e-4


def test_the_search_goes_on_until_the_lowest_is_inside():
    for best in (1e-4, 0.3, 50.0):
        tried_rates = search_rate(0.02, lambda rate, best=best: (rate / best - 1) ** 2 - 1)
        lowest = min(tried_rates, key=tried_rates.get)
        assert best / 2 < lowest < best * 2
        assert min(tried_rates) < lowest < max(tried_rates)
    assert len(search_rate(1.0, lambda rate: 1.0)) < 40  # it gives up


def test_the_best_rate_for_one_step_is_halved_until_rounds_add_up():
    one_step = {rate: -rate for rate in (0.1, 0.2, 0.4, 0.8)}
    assert lasting_rate(one_step, 0.8, lambda rate: -4 * rate) == 0.8
    assert lasting_rate(one_step, 0.8, lambda rate: 10 * rate**2 - 4 * rate) == 0.2
    assert lasting_rate(one_step, 0.8, lambda rate: 1.0) == 0.8 / 2**5  # it gives up


def test_rounds_in_a_row_are_measured_where_the_last_one_led(tmp_path):
    """One round in a row is one step; more are not so many of the first."""
    probe = probe_of(config(tmp_path, queries=8))
    first = probe.estimate(1e-3, 1)
    assert probe.after_rounds(1e-3, 0.02, 1) == probe.after_step(first, 0.02)
    whole = probe.after_rounds(1e-3, 0.02, 3)
    assert whole == probe.after_rounds(1e-3, 0.02, 3)
    assert whole != probe.after_step(first, 0.06)


def test_a_long_run_is_tried_first_and_a_short_one_is_not(tmp_path):
    short = config(tmp_path, "short")
    federate(short)
    assert not (folder_of(short) / "preflight.json").exists()
    long_ = config(tmp_path, "long", preflight_rounds=3)
    result = federate(long_)
    written = json.loads((folder_of(long_) / "preflight.json").read_text())
    assert written["verdict"] in ("fine", "doubtful")
    assert [row["eps"] for row in written["eps"]] == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    assert result.digest == federate(config(tmp_path, "same")).digest


def test_a_long_run_that_cannot_work_is_not_begun(tmp_path):
    chosen = config(tmp_path, preflight_rounds=3, eps=1e-10)
    with pytest.raises(ConfigError, match=r"rounding drowns it.*preflight-rounds = 0 goes without"):
        federate(chosen)
    without = Config.from_run_config(
        chosen.to_run_config() | {"preflight-rounds": 0, "run-name": "without"}
    )
    assert federate(without).summary["rounds"] == 3


@pytest.mark.parametrize(
    ("changes", "status"),
    [(["learning-rate=0.01"], 0), (["learning-rate=5.0"], 1), (["eps=1e-10"], 2)],
)
def test_the_status_tells(tmp_path, changes, status):
    pairs = ["dataset=topics", "max-samples=6", "partitioner=iid", "block-size=16", "queries=8"]
    pairs += ["num-clients=3", f"output-dir={tmp_path}", "zo-batch-size=2", *changes]
    words = [word for pair in pairs for word in ("--set", pair)]
    done = CliRunner().invoke(app, ["preflight", *words, "--name", "tried"])
    assert done.exit_code == status, done.output
    assert ("use --set" in done.output) == bool(status)
    written = json.loads((tmp_path / "tried" / "preflight.json").read_text())
    assert bool(written["suggestion"]) == bool(status)


@pytest.mark.slow
def test_the_suggested_rate_lowers_the_loss_where_the_given_one_does_not(tmp_path):
    bad = {"queries": 8, "num_rounds": 60, "learning_rate": 2.0, "guard_rewinds": 0}
    result = run_preflight(config(tmp_path, **bad))
    assert result.verdict == "doubtful"
    good = bad | {"learning_rate": result.suggestion()["learning-rate"]}
    trained = federate(config(tmp_path, "good", **good)).summary
    assert trained["evaluation_loss_last"] < trained["evaluation_loss_first"] - 0.3
    with pytest.raises(Exception, match="skipped"):
        federate(config(tmp_path, "bad", **bad))
