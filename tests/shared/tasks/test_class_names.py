"""Data, label words and heads number the classes alike, or the run is refused."""

import json

import pytest
import small_models
import torch

from shared.base.errors import ConfigError, DataError
from shared.config.schema import Config
from shared.data.documents import UNLABELLED, Documents
from shared.models.load import load_model
from shared.tasks.class_names import number_classes
from shared.tasks.task import task_of
from shared.training.corpus import Corpus, load_documents
from shared.training.oracle import Oracle

GOOD, BAD = "the film was great and good", "terrible plot and it was bad"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))


def table(folder, labels):
    """A folder of good and bad texts in turn, with these labels."""
    folder.mkdir()
    rows = [{"text": (BAD, GOOD)[n % 2], "label": labels[n % 2]} for n in range(60)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def settings(dataset, words, **more):
    return Config({"dataset": dataset, "task": "classification", "label-words": words,
                   "num-clients": 2, "block-size": 16, **more})  # fmt: skip


@pytest.mark.parametrize("words", ["negative, positive", "positive, negative", "Positive,NEGATIVE"])
@pytest.mark.parametrize("own", [False, True])
def test_label_words_number_the_classes_of_every_folder(tmp_path, words, own):
    documents = load_documents(
        settings(table(tmp_path / "words", ["negative", "positive"]), words), own=own
    )
    first = words.casefold().startswith("positive")
    assert list(documents.labels[:2]) == ([1, 0] if first else [0, 1])
    assert [word.strip() for word in words.split(",")] == list(documents.classes)


def test_a_perfect_classifier_scores_all_whatever_the_alphabet_says(tmp_path):
    """Its class 0 is "positive": the words in that order, and only these, are right."""
    from transformers import BertForSequenceClassification

    names = {0: "positive", 1: "negative"}
    folder, data = str(tmp_path / "bert"), table(tmp_path / "words", ["negative", "positive"])
    small_models.saved(tmp_path / "base", small_models.bert(), framed=True)
    module = BertForSequenceClassification.from_pretrained(
        tmp_path / "base", id2label=names, label2id={name: n for n, name in names.items()}
    ).eval()
    tokenizer = small_models.tokenizer(framed=True)
    inputs = tokenizer([BAD, GOOD], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():  # the head that tells the two texts apart: least squares of two points
        pooled = module.bert(**inputs).pooler_output
        module.classifier.weight.copy_(torch.stack([pooled[1] - pooled[0], pooled[0] - pooled[1]]))
        middle = module.classifier.weight @ pooled.mean(0)
        module.classifier.bias.copy_(-middle)
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = settings(data, "positive, negative", model=folder)
    oracle = Oracle.of(config)
    rows = Corpus.of(config, oracle.language_model).evaluation()
    confusion = oracle.outcome(rows).confusion
    assert confusion.trace() == confusion.sum() == len(rows)
    wrong = settings(data, "negative, positive", model=folder)
    with pytest.raises(ConfigError, match=r"order of the head .* positive, negative; got negative"):
        task_of(wrong, load_model(folder, 1, ("negative", "positive")))


def test_names_that_are_neither_words_nor_numbers_are_refused(tmp_path):
    data = table(tmp_path / "other", ["neg", "pos"])
    with pytest.raises(DataError, match=r"label-words says, bad, good, .*0 to 1; got neg, pos"):
        load_documents(settings(data, "bad, good"))


@pytest.mark.parametrize(
    ("labels", "words", "numbers"),
    [
        ([1, 2], "bad, neutral, good", [1, 2]),
        (["1", "2"], "bad, neutral, good", [1, 2]),
        ([1, 2], "1, 2", [0, 1]),
        ([-1, 1], "bad, good", [UNLABELLED, 1]),
        ([0.0, 1.0], "bad, good", [0, 1]),
        ([False, True], "bad, good", [0, 1]),
    ],
)
def test_numbers_are_classes_as_they_stand_unless_they_are_words(tmp_path, labels, words, numbers):
    assert (
        list(load_documents(settings(table(tmp_path / "d", labels), words)).labels[:2]) == numbers
    )


def test_an_order_that_the_data_give_holds_unless_the_words_contradict_it():
    rated = Documents(["a", "b"], ["g", "g"], [0, 1], ("rotten", "fresh"))
    assert number_classes(rated, ("terrible", "great")) is rated
    assert number_classes(rated, ("awful", "fresh")) is rated
    assert number_classes(rated, ("fresh", "rotten")).labels == [1, 0]
    with pytest.raises(DataError, match="got rotten, fresh"):
        number_classes(rated, ("fresh", "great"))


def test_classes_that_are_not_used_are_not_asked_for():
    some = Documents(["a"], ["g"], [1], ("neutral", "good"))
    assert number_classes(some, ("bad", "good")).labels == [1]


def test_a_class_with_a_comma_is_named_as_it_is_written():
    documents = Documents(["x"], ["x"], [0], ("sent home, well",), alphabetical=True)
    with pytest.raises(DataError, match=r'says, sent home, well, or .* got "sent home, well"'):
        number_classes(documents, ("sent home", "well"))
