"""What a classifier chose: scores as scikit-learn has them, a table, a picture, the worst pairs."""

import csv
import json
import struct

import numpy as np
import pytest
from federation import config, ledger_of
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from tiny_reviews import CLASSES, folders, reviews  # noqa: F401  (fixtures)

from dandelion.engines.local import run_local
from server.reporting.class_choices import MOST_CELLS, ClassChoices
from shared.base.metrics import class_scores, confusion_of, f1, macro_f1
from shared.training.corpus import Corpus
from shared.training.oracle import Oracle, evaluate


@pytest.mark.parametrize("classes", [2, 3, 20, 151])
def test_scores_of_classes_are_those_of_scikit_learn(classes):
    random = np.random.default_rng(classes)
    own, chosen = random.integers(0, classes, (2, 4 * classes))
    table, labels = confusion_of(own, chosen, classes), range(classes)
    assert np.array_equal(table, confusion_matrix(own, chosen, labels=labels))
    theirs = precision_recall_fscore_support(own, chosen, labels=labels, zero_division=0)
    for ours, wanted in zip(class_scores(table), theirs, strict=True):
        assert ours == pytest.approx(wanted)
    macro = f1_score(own, chosen, labels=labels, average="macro", zero_division=0)
    assert macro_f1(table) == pytest.approx(macro)
    assert f1(table) == pytest.approx(f1_score(own, chosen) if classes == 2 else macro)


def choices(count):
    random = np.random.default_rng(1)
    table = random.integers(0, 3, (count, count))
    table[0, 1] = 90
    return ClassChoices([f"name of class {n}, rather long" for n in range(count)], table)


@pytest.mark.parametrize("count", [2, MOST_CELLS, MOST_CELLS + 1, 1000])
def test_the_picture_stays_readable_for_any_number_of_classes(count, tmp_path):
    choices(count).draw(tmp_path)
    data = (tmp_path / "confusion.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert 300 < height < 2500
    assert 400 < width < 2500


def test_the_worst_pairs_come_first_and_right_choices_never():
    pairs = choices(40).worst_pairs()
    assert pairs[0] == ("name of class 0, rather long", "name of class 1, rather long", 90)
    assert len(pairs) == 25
    assert all(a != b for a, b, _ in pairs)
    assert ClassChoices(["a", "b"], np.diag([3, 4])).worst_pairs() == []


def test_a_classifier_that_is_never_wrong_among_many_classes_can_be_drawn(tmp_path):
    ClassChoices([str(n) for n in range(40)], np.eye(40, dtype=np.int64)).draw(tmp_path)
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_a_run_leaves_its_classes_and_their_picture(folders, tmp_path):
    words = "a plot, a film, good"
    c = config(tmp_path, model=folders["words"], num_rounds=2, eval_interval=1,
               **{**CLASSES, "label_words": words})  # fmt: skip
    folder = run_local(c)
    oracle = Oracle.of(c)
    corpus = Corpus.of(c, oracle.language_model)
    with ledger_of(c) as ledger:
        first = dict(ledger.scores()["macro_f1"])[0]
        table, series = ledger.choices(3), ledger.scores()
    assert first == evaluate(oracle, corpus.evaluation()).scores()["macro_f1"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["evaluation_macro_f1_last"] == series["macro_f1"][-1][1]
    assert macro_f1(table) == pytest.approx(summary["evaluation_macro_f1_last"])
    with (folder / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == words.split(", ")
    assert [int(row["support"]) for row in rows] == table.sum(1).tolist()
    assert [row["f1"] for row in summary["classes"]] == pytest.approx(class_scores(table).f1)
    assert (folder / "confusion.png").is_file()
    with (folder / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["macro f1"]) == pytest.approx(summary["evaluation_macro_f1_last"])


def test_a_language_model_has_no_classes(tmp_path):
    folder = run_local(config(tmp_path, num_rounds=1))
    assert not (folder / "classes.csv").exists()
    assert "most_confused" not in json.loads((folder / "summary.json").read_text())
