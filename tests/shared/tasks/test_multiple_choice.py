"""Multiple choice: scores by hand, in every mode, with any number of choices, and refusals."""

import json

import families
import numpy as np
import pytest
import torch
from federation import config, federate, ledger_of, replayed
from tiny_reviews import folders  # noqa: F401  (fixture)

from shared.base.errors import ConfigError, DataError
from shared.training.corpus import Corpus
from shared.training.oracle import Oracle, evaluate

CHOICES = [("good film", "bad", "terrible plot"), ("great", "terrible"), ("it was good", "bad")]
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A folder with questions whose right choice their words tell."""
    folder = tmp_path_factory.mktemp("questions")
    rows = [
        {"question": f"the film {'was ' * (n % 4)}{('good', 'bad')[n % 2]} it",
         "choices": CHOICES[n % 3], "answer": n % 2, "group": f"g{n % 4}"}
        for n in range(48)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(folder)


@pytest.fixture
def task(questions):
    return {"task": "multiple-choice", "dataset": questions, "block_size": 12, "max_samples": 0,
            "choice_prompt": "the film {text} It", "partitioner": "iid",
            "num_clients": 2}  # fmt: skip


def by_hand(module, row, is_mean):
    """The loss of a row, by one plain pass for each of its choices."""
    parts, answer = [[]], int(row[0])
    for token in row[1:].tolist():
        parts.append([]) if token == -2 else parts[-1].append(token)
    question, *choices = [[token for token in part if token >= 0] for part in parts]
    scores = []
    for choice in choices:
        log_p = module(torch.tensor([question + choice])).logits[0].float().log_softmax(-1)
        each = [log_p[len(question) - 1 + at, token].item() for at, token in enumerate(choice)]
        scores.append(np.mean(each) if is_mean else np.sum(each))
    return -torch.tensor(scores).log_softmax(0)[answer].item()


@pytest.mark.parametrize("scoring", ["sum", "mean"])
@pytest.mark.parametrize("family", ["llama", "opt", "mamba"])
def test_the_loss_is_that_of_a_pass_for_each_choice(family, scoring, task, tmp_path):
    folder = families.saved(tmp_path / family, family)
    c = config(tmp_path, model=folder, label_scoring=scoring, **task)
    oracle = Oracle.of(c)
    corpus = Corpus.of(c, oracle.language_model)
    rows = torch.from_numpy(corpus.training.batch(np.arange(7)))
    with torch.inference_mode():
        wanted = [by_hand(oracle.language_model.module, row, scoring == "mean") for row in rows]
    assert oracle.losses(rows).tolist() == pytest.approx(wanted, abs=1e-4)
    scores = oracle.task.predict(oracle.language_model.module, rows)
    assert scores.shape == (7, 3)
    assert scores.isinf().any()  # of a question with two choices


@pytest.mark.parametrize("mode", ["zo", "fo", "calibrate", "instruct", "fedavg"])
def test_every_mode_steps_and_is_replayed(mode, task, folders, tmp_path):
    c = config(tmp_path, model=folders["words"], mode=mode, bp_interval=2, num_rounds=2, **task)
    run = federate(c)
    assert run.summary["refused_replies"] == 0
    assert run.summary["evaluation_loss_last"] != run.summary["evaluation_loss_first"]
    with ledger_of(c) as ledger:
        assert torch.equal(replayed(c, ledger, 2), run.flat)
        assert list(ledger.scores()) == ["accuracy"]


def test_first_order_rounds_learn_the_answers(task, folders, tmp_path):
    run = federate(config(tmp_path, model=folders["words"], mode="fo", num_rounds=30,
                          learning_rate=0.1, bp_batch_size=16, site_eval_fraction=0.2,
                          **task))  # fmt: skip
    assert run.summary["evaluation_accuracy_last"] == 1.0
    assert run.summary["evaluation_accuracy_first"] < 1.0


def test_a_trained_last_block_measures_what_a_plain_pass_does(task, folders, tmp_path):
    plain = Oracle.of(config(tmp_path, model=folders["words"], **task))
    c = config(tmp_path, model=folders["words"], scope="last:1", **task)
    oracle = Oracle.of(c)
    rows = Corpus.of(c, oracle.language_model).evaluation()
    assert evaluate(oracle, rows).loss == pytest.approx(evaluate(plain, rows).loss, abs=1e-5)


def test_a_question_is_cut_and_a_choice_that_does_not_fit_is_named(task, folders, tmp_path):
    c = config(tmp_path, model=folders["words"], **{**task, "block_size": 7})
    oracle = Oracle.of(c)
    rows = Corpus.of(c, oracle.language_model).training.tokens
    widths = (np.cumsum(rows == -2, 1) == 0).sum(1)
    assert set(widths.tolist()) == {7, 6, 5}  # the longest choice has 1, 2 or 3 tokens
    short = config(tmp_path, "short", model=folders["words"], **{**task, "block_size": 4})
    with pytest.raises(DataError, match=r"question 'the film.*' with choices .*block-size above"):
        Corpus.of(short, oracle.language_model)


def test_texts_without_choices_are_refused(task, folders, tmp_path):
    c = config(tmp_path, model=folders["words"], **{**task, "dataset": "topics", "max_samples": 9})
    with pytest.raises(DataError, match="questions with choices expected"):
        Corpus.of(c, Oracle.of(c).language_model)


def test_an_encoder_and_first_tokens_are_refused(task, folders, tmp_path):
    with pytest.raises(ConfigError, match="predicts no next token"):
        Oracle.of(config(tmp_path, model=folders["head"], **task))
    with pytest.raises(ConfigError, match="label-scoring = 'first' with task multiple-choice"):
        Oracle.of(config(tmp_path, model=folders["words"], label_scoring="first", **task))
