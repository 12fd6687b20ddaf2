"""Passes over the data, another set to evaluate on, and fewer rows in the logs."""

import csv
import math

import pytest
from federation import config, federate, folder_of, resumed

from server.ledger.run_folder import examples_of_round, resolve_epochs
from shared.base.errors import ConfigError, DandelionError
from shared.config.schema import Config
from shared.training.corpus import Corpus, load_evaluation
from shared.training.oracle import Oracle


def test_a_pass_is_as_many_rounds_as_show_every_example_once(tmp_path):
    chosen = config(tmp_path, epochs=0.02)
    oracle = Oracle.of(chosen)
    examples = len(Corpus.of(chosen, oracle.language_model).training)
    expected = math.ceil(0.02 * examples / (3 * 2))
    outcome = federate(chosen)
    assert outcome.summary["rounds"] == expected > 1
    assert f"num-rounds = {expected}\n" in (folder_of(chosen) / "config.toml").read_text()
    longer = federate(resumed(chosen, num_rounds=expected, epochs=0.04))
    assert longer.summary["rounds"] == math.ceil(0.04 * examples / (3 * 2))


@pytest.mark.parametrize(
    ("changes", "examples"),
    [
        ({}, 3 * 2),
        ({"clients_per_round": 2, "local_steps": 2}, 2 * 2 * 2),
        ({"query_data": "fresh"}, 3 * 2 * 2),
        ({"zo_batch_size": 0}, 99),
        ({"zo_batch_size": 0, "clients_per_round": 2, "local_steps": 3}, 99 * 2 / 3 * 3),
        ({"mode": "fo", "bp_batch_size": 5}, 3 * 5),
        ({"mode": "fedavg", "bp_batch_size": 5, "local_steps": 4}, 3 * 5 * 4),
    ],
)
def test_what_a_round_sees(tmp_path, changes, examples):
    assert examples_of_round(config(tmp_path, **changes), 99) == examples


def test_without_epochs_rounds_are_as_given(tmp_path):
    chosen = config(tmp_path)
    assert resolve_epochs(chosen, None) is chosen
    with pytest.raises(ConfigError, match="epochs"):
        config(tmp_path, epochs=-1.0)


def test_another_set_is_evaluated_on_by_its_held_out_part(tmp_path):
    chosen = config(tmp_path, eval_dataset="stdlib")
    model = Oracle.of(chosen).language_model
    other = Config.from_run_config(
        chosen.to_run_config() | {"dataset": "stdlib", "max-samples": 0, "eval-dataset": ""}
    )
    rows = load_evaluation(Corpus.of(chosen, model), model)
    assert rows.tolist() == Corpus.of(other, model).evaluation().tolist()
    assert rows.tolist() != Corpus.of(chosen, model).evaluation().tolist()
    own = federate(config(tmp_path, "own"))
    outcome = federate(chosen)
    assert outcome.digest == own.digest  # what is evaluated changes no bit
    assert outcome.summary["evaluation_loss_last"] != own.summary["evaluation_loss_last"]
    with pytest.raises(DandelionError, match="nonsense"):
        config(tmp_path, eval_dataset="nonsense")


def test_logs_have_every_nth_round_and_the_last(tmp_path):
    chosen = config(tmp_path, num_rounds=7, log_interval=3)
    outcome = federate(chosen)
    for name in ("metrics.csv", "clients.csv"):
        with (folder_of(chosen) / name).open() as file:
            rounds = [int(row["round"]) for row in csv.DictReader(file)]
        assert sorted(set(rounds)) == [3, 6, 7]
    assert outcome.digest == federate(config(tmp_path, "all", num_rounds=7)).digest
