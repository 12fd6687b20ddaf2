"""Regression: losses and scores as defined, heads of all kinds, every mode, exact slopes."""

import csv
import json
import math

import families
import numpy as np
import pytest
import torch
from federation import config, federate, ledger_of, replayed
from tiny_reviews import folders  # noqa: F401  (fixture)
from torch import nn

from shared.base.errors import ConfigError, DataError
from shared.base.metrics import EvalSums, number_sums, rank_correlation
from shared.data.columns import Columns
from shared.data.local_folder import documents_in
from shared.tasks.regression import Regression
from shared.tasks.text_rules import check_text
from shared.training.corpus import Corpus
from shared.training.oracle import Oracle, evaluate

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
WORDS = ("good", "bad", "great", "terrible")


def write(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder with texts whose last word says their number."""
    rows = [{"text": f"the film {'was ' * (n % 3)}{WORDS[n % 4]}", "value": 5.0 + 3 * (n % 4)}
            for n in range(48)]  # fmt: skip
    return write(tmp_path_factory.mktemp("films"), rows)


@pytest.fixture
def task(films):
    return {"task": "regression", "dataset": films, "block_size": 12, "max_samples": 0,
            "target_mean": 9.5, "target_scale": 3.35, "partitioner": "iid",
            "num_clients": 2}  # fmt: skip


@pytest.mark.parametrize("kind", ["head", "words"])
def test_the_loss_is_the_squared_error_of_standardised_numbers(kind, task, folders, tmp_path):
    c = config(tmp_path, model=folders[kind], **task)
    oracle = Oracle.of(c)
    corpus, module = Corpus.of(c, oracle.language_model), oracle.language_model.module
    examples = corpus.training.take(np.arange(6))
    rows, losses = torch.from_numpy(examples.batch(np.arange(6))), []
    assert set(examples.targets) <= {5.0, 8.0, 11.0, 14.0}
    for tokens, number in zip(examples.tokens, examples.targets, strict=True):
        ids = torch.tensor(tokens[tokens >= 0].astype(np.int64))[None]
        with torch.inference_mode():
            output = module(ids).logits.item()
        losses.append((output - (number - 9.5) / 3.35) ** 2)
    assert oracle.losses(rows).tolist() == pytest.approx(losses, abs=1e-5)
    assert oracle.task.labels(rows).tolist() == examples.targets.tolist()


def test_scores_are_those_of_the_definition_and_add_up():
    random = np.random.default_rng(0)
    numbers, estimates = random.normal(3, 2, (2, 50))
    parts = [
        EvalSums(0.0, len(n), sums=number_sums(n, e))
        for n, e in zip(np.split(numbers, [20]), np.split(estimates, [20]), strict=True)
    ]
    scores = sum(parts, EvalSums(0.0, 0)).scores()
    assert scores["mae"] == pytest.approx(np.abs(numbers - estimates).mean())
    assert scores["rmse"] == pytest.approx(np.sqrt(((numbers - estimates) ** 2).mean()))
    assert scores["pearson"] == pytest.approx(np.corrcoef(numbers, estimates)[0, 1])
    assert "spearman" not in scores  # ranks need all pairs, which sums are not
    same = EvalSums(0.0, 2, sums=number_sums(np.ones(2), np.array([1.0, 2.0])))
    assert same.scores()["pearson"] == 0.0


def test_scores_of_numbers_far_from_zero_keep_their_digits():
    random = np.random.default_rng(1)
    standard, noise = random.normal(0, 1, (2, 40))
    numbers = 1.7e9 + 60.0 * standard  # seconds of a day in 2023
    output = torch.from_numpy(standard + 0.5 * noise).float()
    rows = torch.stack([torch.from_numpy(numbers).view(torch.int64), torch.ones(40).long()], 1)
    task = Regression(lambda text, most: text, lambda *_: output[:, None], 1.7e9, 60.0)
    scores = task.outcome(nn.Identity(), rows).scores()
    error = 60 * (output.double().numpy() - standard)
    assert scores["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-6)
    assert scores["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-6)
    expected = np.corrcoef(standard, output.double().numpy())[0, 1]
    assert scores["pearson"] == pytest.approx(expected, rel=1e-6)


def test_ranks_are_compared_over_all_batches_and_ties_share_theirs():
    numbers = np.array([1.0, 2.0, 2.0, 4.0, 9.0, 3.0])
    estimates = np.array([0.1, 0.5, 0.7, 0.6, 80.0, 0.6])
    parts = [
        EvalSums(0.0, 3, sums=number_sums(n, e), pairs=np.stack([n, e], 1))
        for n, e in zip(np.split(numbers, 2), np.split(estimates, 2), strict=True)
    ]
    ours = sum(parts, EvalSums(0.0, 0)).scores()["spearman"]
    ranks = [1, 2.5, 2.5, 5, 6, 4], [1, 2, 5, 3.5, 6, 3.5]
    assert ours == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert rank_correlation(np.ones(3), np.arange(3.0)) == 0.0


@pytest.mark.parametrize("mode", ["zo", "fo", "calibrate", "instruct", "fedavg"])
@pytest.mark.parametrize("kind", ["head", "words"])
def test_every_mode_steps_and_is_replayed(mode, kind, task, folders, tmp_path):
    c = config(tmp_path, model=folders[kind], mode=mode, bp_interval=2, num_rounds=2, **task)
    run = federate(c)
    assert run.summary["refused_replies"] == 0
    assert run.summary["evaluation_loss_last"] != run.summary["evaluation_loss_first"]
    with ledger_of(c) as ledger:
        assert torch.equal(replayed(c, ledger, 2), run.flat)
        assert set(ledger.scores()) == {"mae", "rmse", "pearson", "spearman"}


@pytest.mark.parametrize(("kind", "features"), [("head", "mean"), ("words", "last")])
def test_a_readout_has_the_slopes_of_backpropagation(kind, features, task, folders, tmp_path):
    c = config(tmp_path, model=folders[kind], scope="head", features=features,
               feature_scaling="none", mode="fo", learning_rate=0.02,
               num_rounds=10, **task)  # fmt: skip
    oracle = Oracle.of(c)
    assert oracle.is_linear
    rows = Corpus.of(c, oracle.language_model).evaluation()[:8]
    loss, gradient = oracle.linear_gradient(rows)
    readout = oracle.language_model.module.readout
    whole = oracle.task.loss(oracle.language_model.module, rows)
    wanted = torch.autograd.grad(whole, [readout.weight, readout.bias])
    assert loss == pytest.approx(whole.item(), rel=1e-6)
    names = ("readout.weight", "readout.bias")
    gathered = oracle.replica.model.gather(dict(zip(names, wanted, strict=True)))
    assert torch.allclose(gradient, gathered, atol=1e-5)
    run = federate(c)
    assert run.summary["evaluation_loss_last"] < run.summary["evaluation_loss_first"]


def test_first_order_rounds_learn_the_numbers(task, folders, tmp_path):
    run = federate(config(tmp_path, model=folders["words"], mode="fo", num_rounds=60,
                          optimizer="adam", learning_rate=0.02, bp_batch_size=16,
                          **task))  # fmt: skip
    assert run.summary["evaluation_pearson_last"] > 0.9
    assert run.summary["evaluation_mae_last"] < 0.6 * run.summary["evaluation_mae_first"]
    with (tmp_path / "run" / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    for name in ("mae", "rmse", "pearson", "spearman"):
        assert float(last[name]) == pytest.approx(run.summary[f"evaluation_{name}_last"], rel=1e-6)


def test_a_result_is_a_start_and_a_trained_block_changes_nothing(task, folders, tmp_path):
    oracle = Oracle.of(config(tmp_path, model=folders["words"], **task))
    oracle.language_model.save(tmp_path / "saved")
    c = config(tmp_path, "again", model="", init_from=str(tmp_path / "saved"), scope="last:1",
               **task)  # fmt: skip
    again = Oracle.of(c)
    rows = Corpus.of(c, again.language_model).evaluation()
    assert evaluate(again, rows).loss == pytest.approx(evaluate(oracle, rows).loss, abs=1e-5)


def test_what_has_no_head_of_one_output_is_refused(task, folders, tmp_path):
    with pytest.raises(ConfigError, match="a head for MambaForCausalLM expected"):
        Oracle.of(config(tmp_path, model=families.saved(tmp_path / "m", "mamba"), **task))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"target_column": "days"}, "target-column = days needs task regression, got 'language"),
        ({"target_mean": 3.0}, "target-mean = 3.0 needs task regression"),
        ({"answer_column": "gold"}, "answer-column = gold needs task multiple-choice"),
        ({"choice_columns": "a,b"}, "choice-columns = a,b needs task multiple-choice"),
    ],
)
def test_settings_of_answers_without_their_task_are_refused(setting, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        check_text(config(tmp_path, **setting))


def test_cells_that_are_no_numbers_are_named_and_empty_ones_left_out(task, folders, tmp_path):
    rows = [{"text": "a film", "value": value} for value in ("1", "2.5", "")]
    documents = documents_in(write(tmp_path / "a", rows) and tmp_path / "a",
                             columns=Columns(number=""))  # fmt: skip
    assert documents.numbers[:2] == [1.0, 2.5]
    assert math.isnan(documents.numbers[2])
    c = config(tmp_path, model=folders["head"], **task)
    made = Oracle.of(c).task.examples(documents, 8)
    assert made.targets.tolist() == [1.0, 2.5]
    write(tmp_path / "b", [*rows, {"text": "b", "value": "many"}])
    with pytest.raises(DataError, match="row 4: a number expected in column 'value', got 'many'"):
        documents_in(tmp_path / "b", columns=Columns(number="value"))
    with pytest.raises(ConfigError, match=r"target-column: .* got 'days'"):
        documents_in(tmp_path / "b", columns=Columns(number="days"))
    with pytest.raises(DataError, match="documents with numbers expected"):
        Corpus.of(config(tmp_path, "t", model=folders["head"],
                         **{**task, "dataset": "topics"}), Oracle.of(c).language_model)  # fmt: skip
