"""Objectives: numbers by hand, equal to the loss if they are it, and refused if they are none."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import rewards
import torch
from federation import config, federate, ledger_of
from tiny_reviews import CLASSES, folders, reviews  # noqa: F401  (fixtures)

from dandelion.engines.local import run_local
from shared.base.errors import ConfigError, StalledError, UnknownNameError
from shared.objectives.objective import MeasuredObjective, check_objective
from shared.objectives.reward import reward_source
from shared.objectives.scores import SCORES
from shared.training.corpus import Corpus, load_evaluation
from shared.training.oracle import Oracle, evaluate
from shared.training.site_data import SiteData

LOGITS = torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.9], [0.0, 3.0, 1.0], [1.0, 0.0, 0.5]])
LABELS = torch.tensor([0, 2, 1, 1])  # right, wrong by 0.1, right by 2, wrong by 1


def numbers(name, logits=LOGITS):
    batch = SimpleNamespace(logits=logits, labels=LABELS)
    return SCORES[name](batch)


@pytest.fixture
def chosen(folders):
    return {"model": folders["head"], **CLASSES, "scope": "head", "zo_batch_size": 8}


# --- scores of classes


def test_the_error_is_one_minus_accuracy():
    assert numbers("accuracy").tolist() == [0, 1, 0, 1]


def test_f1_is_the_mean_over_classes_of_the_batch():
    # class 0: 2·1/(2+1), class 1: 2·1/(2+2), class 2: 0/(0+1)
    assert numbers("f1").tolist() == pytest.approx([1 - (2 / 3 + 1 / 2) / 3] * 4)


def test_the_hinge_is_of_the_largest_other_class():
    assert numbers("margin").tolist() == pytest.approx([0, 1.1, 0, 2])


@pytest.mark.parametrize("name", SCORES)
def test_a_model_that_diverged_has_no_score(name):
    logits = LOGITS.clone()
    logits[1, 0] = torch.nan
    assert numbers(name, logits).isnan().tolist() == [False, True, False, False]


# --- in a run


def metrics_of(config):
    """Run it here; the rows of its metrics."""
    return list(csv.DictReader((run_local(config) / "metrics.csv").read_text().splitlines()))


def run_of(config):
    """Run it here; read the ledger: the last digest, and losses and differences of round 1."""
    run_local(config)
    with ledger_of(config) as ledger:
        return ledger.digest(3), ledger.site_losses(1), ledger.entry(1).slots[0].differences


@pytest.mark.parametrize("name", [*SCORES, "rewards:likelihood"])
def test_a_run_descends_on_it_and_evaluates_loss_and_accuracy(tmp_path, chosen, name):
    run = config(tmp_path, objective=name, learning_rate=0.05, eps=0.1, queries=8, **chosen)
    rows = metrics_of(run)
    assert float(rows[-1]["evaluation loss"]) > 0
    assert 0 <= float(rows[-1]["accuracy"]) <= 1


def test_several_devices_measure_it_as_one_does(tmp_path, chosen):
    one, several = (
        run_of(config(tmp_path, device, objective="margin", device=device, **chosen))
        for device in ("cpu", "cpu,cpu")
    )
    assert one[:2] == several[:2]
    assert np.array_equal(one[2], several[2])


def test_a_reward_that_is_the_negative_loss_gives_the_same_model(tmp_path, chosen):
    by_loss = run_of(config(tmp_path, "loss", **chosen))
    by_reward = run_of(config(tmp_path, "other", objective="rewards:likelihood", **chosen))
    assert by_loss[0] == by_reward[0]


def test_language_modelling_has_rewards_too(tmp_path):
    oracles = [
        Oracle.of(config(tmp_path, objective=name)) for name in ("loss", "rewards:next_likelihood")
    ]
    corpus = Corpus.of(config(tmp_path), oracles[0].language_model)
    rows = torch.from_numpy(corpus.training.batch(np.arange(4)))
    torch.testing.assert_close(oracles[1].losses(rows), oracles[0].losses(rows))
    assert oracles[1].loss(rows) == pytest.approx(oracles[0].loss(rows))


@pytest.mark.slow
def test_accuracy_learns_a_head_by_forward_passes_alone(tmp_path, chosen):
    more = {"num_rounds": 40, "queries": 16, "learning_rate": 0.02, "eps": 0.1, "eval_interval": 40}
    run = config(tmp_path, objective="accuracy", **{**chosen, **more, "zo_batch_size": 16})
    oracle = Oracle.of(run)
    rows = load_evaluation(Corpus.of(run, oracle.language_model), oracle.language_model)
    assert evaluate(oracle, rows).scores()["accuracy"] < 0.7
    assert float(metrics_of(run)[-1]["accuracy"]) > 0.9


@pytest.mark.parametrize("name", ["accuracy", "margin", "rewards:likelihood"])
def test_merged_sites_measure_what_each_would_alone(tmp_path, chosen, name):
    alone, merged = (
        run_of(config(tmp_path, f"{merge}", objective=name, merge_clients=merge, **chosen))
        for merge in (False, True)
    )
    for one, other in zip(alone[1:], merged[1:], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


# --- refused


@pytest.mark.parametrize("mode", ["fo", "calibrate", "instruct", "fedavg"])
def test_modes_that_backpropagate_take_the_loss_alone(tmp_path, chosen, mode):
    with pytest.raises(ConfigError, match=f"objective 'margin' with mode '{mode}'"):
        config(tmp_path, objective="margin", mode=mode, **chosen)


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_classes_need_classes(tmp_path, name):
    with pytest.raises(ConfigError, match=f"'{name}' with task 'language-modelling'.* classes"):
        Oracle.of(config(tmp_path, objective=name))


def test_f1_is_not_merged(tmp_path, chosen):
    with pytest.raises(ConfigError, match="F1 is of one site's batch"):
        config(tmp_path, objective="f1", merge_clients=True, **chosen)


def test_other_objectives_are_not_batched_over_directions(tmp_path):
    with pytest.raises(ConfigError, match="parallel-queries = 2"):
        config(tmp_path, objective="rewards:next_likelihood", parallel_queries=2)


@pytest.mark.parametrize("name", ["acuracy", "a:b:c", ":f", "m:", "a b:c"])
def test_an_unknown_name_is_refused(tmp_path, name):
    with pytest.raises(UnknownNameError, match="objective"):
        config(tmp_path, objective=name)


@pytest.mark.parametrize("name", ["no_such_module:f", "rewards:no_such", "rewards:CONSTANT"])
def test_a_function_that_is_none_is_refused_by_the_oracle(tmp_path, chosen, name):
    with pytest.raises(ConfigError, match=f"objective '{name}': module:function expected"):
        Oracle.of(config(tmp_path, objective=name, **chosen))


WRONG = {
    "nan": "1 of 4 that are not",
    "mean": r"\(4,\) expected.* got Tensor \(\)",
    "number": "got float",
    "short": r"got Tensor \(3,\)",
}


@pytest.mark.parametrize(("name", "reason"), WRONG.items())
def test_no_round_begins_with_a_wrong_function(tmp_path, chosen, name, reason):
    run = config(tmp_path, objective=f"rewards:{name}", **chosen)
    with pytest.raises(ConfigError, match=f"objective 'rewards:{name}': .*{reason}"):
        run_local(run)
    with ledger_of(run) as ledger:
        assert ledger.last_round == 0


def test_a_site_tries_the_function_on_its_own_examples(tmp_path, chosen, monkeypatch):
    monkeypatch.setattr("server.run.EVALUATION_BATCH", 0)  # the server tries nothing
    run = config(tmp_path, objective="rewards:nan", **chosen)
    with pytest.raises(StalledError, match="finite numbers expected"):
        run_local(run)


@pytest.mark.parametrize(
    ("name", "reason"), [("nan_of_few", "not finite"), ("short_of_few", "error")]
)
def test_what_goes_wrong_later_is_that_replys_refusal(tmp_path, chosen, name, reason):
    few = {**chosen, "zo_batch_size": rewards.LEAST - 1, "guard_rewinds": 0}
    run = config(tmp_path, objective=f"rewards:{name}", max_skipped_rounds=1, **few)
    with pytest.raises(StalledError):
        federate(run)
    with ledger_of(run) as ledger:
        refusals = ledger.count_refusals()
    assert any(reason in each for each in refusals), refusals


def test_the_trial_looks_at_measured_objectives_alone(chosen, tmp_path):
    oracle = Oracle.of(config(tmp_path, **chosen))
    shard = SiteData.of(config(tmp_path, **chosen), oracle.language_model).shard(0, 3)
    rows = torch.from_numpy(shard.queries.batch(np.arange(2)))
    check_objective(oracle.objective, oracle.language_model.module, rows)
    wrong = MeasuredObjective("wrong", rewards.short, oracle.task)
    with pytest.raises(ConfigError, match="wrong"):
        check_objective(wrong, oracle.language_model.module, rows)
    check_objective(wrong, oracle.language_model.module, rows[:0])


def test_f1_needs_a_batch_of_one_pass(tmp_path, chosen):
    with pytest.raises(ConfigError, match="F1 is of one forward pass"):
        config(tmp_path, objective="f1", **{**chosen, "zo_batch_size": 0})


def test_forward_differences_measure_objectives_too(tmp_path, chosen):
    more = {"estimator": "forward", "learning_rate": 0.01, "queries": 8, "eps": 0.1}
    ends = [
        run_of(config(tmp_path, name, objective=name, **{**chosen, **more}))[1:]
        for name in ("accuracy", "margin")
    ]
    assert all(np.isfinite(losses).all() and differences.any() for losses, differences in ends)


# --- the source is compared


@pytest.fixture
def reward_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "my_reward.py"
    file.write_text("def reward(batch):\n    return batch.logits[:, 0]\n")
    return file


def test_the_base_covers_the_file_of_a_reward(tmp_path, chosen, reward_file):
    run = config(tmp_path, objective="my_reward:reward", **chosen)
    before, plain = Oracle.of(run).base, Oracle.of(config(tmp_path, **chosen)).base
    reward_source.cache_clear()
    assert Oracle.of(run).base == before
    reward_source.cache_clear()
    reward_file.write_text(reward_file.read_text() + "# changed\n")
    assert len({Oracle.of(run).base, before, plain}) == 3
    assert Oracle.of(config(tmp_path, objective="accuracy", **chosen)).base == plain


def test_a_reward_without_source_is_refused():
    with pytest.raises(ConfigError, match="no source file"):
        reward_source("builtins:len")
