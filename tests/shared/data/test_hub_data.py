"""Hub and local data sets: the hub's layout in a folder, what is kept, and what is refused."""

import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from shared.base.errors import ConfigError, DataError, UnknownNameError
from shared.config.schema import Config
from shared.data import hub_cache
from shared.data.documents import DATASETS
from shared.data.hub_cache import ORIGIN_FILE, HubRow, articles, fetch_copy, hub_source
from shared.data.local_folder import documents_in
from shared.data.resolve import documents_of, source_of
from shared.data.sets.hub import HUB
from shared.models.load import load_model
from shared.training.corpus import Corpus
from shared.training.validate import configure

CARD = """---
configs:
- config_name: {config}
  data_files:
  - split: train
    path: {config}/train-*.parquet
  - split: validation
    path: {config}/validation-*.parquet
---
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def repository(folder, config="default", **splits):
    """A repository as the hub has it: a card with its configurations, and parquet files."""
    (folder / config).mkdir(parents=True)
    (folder / "README.md").write_text(CARD.format(config=config))
    for split in ("train", "validation"):
        rows = splits.get(split) or splits["train"]
        dataset = rows if isinstance(rows, Dataset) else Dataset.from_dict(rows)
        dataset.to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
    return str(folder)


def pages(count):
    return {
        "text": [f"page {n} " * 20 for n in range(count)],
        "url": [f"u{n}" for n in range(count)],
    }


def source(name, row):
    return hub_source(name, row, "", "", "")


def test_the_first_documents_are_streamed_once_and_kept(tmp_path, cache, monkeypatch):
    row = HubRow(repository(tmp_path / "web", "en", train=pages(50)), "en", ("text",), samples=20)
    first = source("web", row).load(20, "group")
    assert list(first.texts) == pages(20)["text"]
    assert [path.name for path in (cache / "hub").iterdir()] == ["web-20"]
    origin = json.loads((cache / "hub/web-20" / ORIGIN_FILE).read_text())
    assert origin == {"hub": row.hub, "config": "en", "revision": "", "documents": 20}
    monkeypatch.setattr(hub_cache, "_save", None)
    again = source("web", row).load(20, "group")
    assert list(again.texts) == list(first.texts)
    assert again.revision == first.revision != ""


def test_another_number_of_documents_is_another_copy(tmp_path):
    row = HubRow(repository(tmp_path / "web", train=pages(50)), "", ("text",), samples=20)
    assert list(source("web", row).load(7, "group").texts) == pages(7)["text"]
    assert fetch_copy("web", row, 7) != fetch_copy("web", row, 8)


def test_a_classification_set_keeps_its_classes_and_its_own_evaluation_part(tmp_path):
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    parts = {
        split: Dataset.from_dict(
            {"sentence": [f"{split} {n}" for n in range(size)], "label": [1, 0] * (size // 2)},
            features,
        )
        for split, size in (("train", 40), ("validation", 10))
    }
    row = HubRow(
        repository(tmp_path / "sst", **parts), "", ("sentence",), label="label",
        held_out="validation",
    )  # fmt: skip
    documents = source("sst", row).load(0, "group")
    assert documents.classes == ("bad", "good")
    assert documents.labels[:3] == [1, 0, 1]
    training, held_out = documents.parts()
    assert (len(training.texts), len(held_out.texts)) == (40, 10)
    assert held_out.texts[0] == "validation 0"
    thin = source("sst", row).load(10, "group")
    assert [len(part.texts) for part in thin.parts()] == [8, 2]


def test_columns_are_joined_and_a_record_gives_the_natural_id(tmp_path):
    data = {"a": ["x", "y"], "b": ["1", "2"], "meta": [{"set": "s"}, {"set": "t"}]}
    row = HubRow(repository(tmp_path / "qa", train=data), "", ("a", "b"), group="meta.set")
    documents = source("qa", row).load(0, "group")
    assert list(documents.texts) == ["x\n1", "y\n2"]
    assert list(documents.groups) == ["s", "t"]


def test_columns_of_text_and_label_are_found_where_no_row_names_them(tmp_path):
    data = {"content": ["one", "two"], "label": [1, 0], "id": [3, 4]}
    documents = source("any", HubRow(repository(tmp_path / "any", train=data))).load(0, "group")
    assert list(documents.texts) == ["one", "two"]
    assert documents.labels == [1, 0]
    bad = source("bad", HubRow(repository(tmp_path / "bad", train={"id": [1], "words": ["a"]})))
    with pytest.raises(DataError, match=r"columns of text expected .*text.*got id, words"):
        bad.load(0, "group")


def test_lines_under_one_title_are_one_article():
    lines = ["", " = One = \n", "a\n", " = = Part = = \n", "b\n", " = Two = \n", "c\n", ""]
    assert [a["text"] for a in articles({"text": line} for line in lines)] == [
        " = One = \na\n = = Part = = \nb\n",
        " = Two = \nc\n",
    ]


def test_without_a_hub_it_is_said_what_to_copy_and_where(cache):
    with pytest.raises(DataError) as error:  # the tests run with HF_HUB_OFFLINE
        documents_of("tinystories", 5)
    message = str(error.value)
    assert "roneneldan/TinyStories" in message
    assert "dandelion data download tinystories" in message
    assert str(cache / "hub" / "tinystories-5") in message
    assert str(cache / "local" / "tinystories") in message
    assert list(cache.rglob("*")) == []


def test_a_folder_that_was_put_by_hand_goes_before_the_hub(cache):
    Dataset.from_dict(pages(30)).save_to_disk(cache / "local/tinystories")
    documents = documents_of("tinystories", 6)
    assert len(documents.texts) == 6
    assert set(documents.texts) < set(pages(30)["text"])


def test_a_failed_stream_leaves_nothing_behind(tmp_path, cache):
    row = HubRow(repository(tmp_path / "web", train=pages(5)), "", ("text",), group="no.such")
    with pytest.raises(DataError, match=r"'web' cannot be had .*'no'"):
        source("web", row).load(0, "group")
    assert list((cache / "hub").iterdir()) == []


# --- local folders


def test_questions_answers_and_decisions_are_joined(cache):
    data = {
        "pubid": [1, 2],
        "question": ["Is it?", "Was it?"],
        "long_answer": ["It is.", "It was not."],
        "final_decision": ["yes", "no"],
    }
    Dataset.from_dict(data).save_to_disk(cache / "local/pubmedqa-local")
    documents = documents_of("pubmedqa-local", by="label")
    assert list(documents.texts) == ["Is it?\nIt is.\nyes", "Was it?\nIt was not.\nno"]
    assert documents.classes == ("no", "yes")
    assert list(documents.groups) == ["yes", "no"]


def test_any_column_of_a_saved_folder_serves_as_a_natural_id(tmp_path):
    data = {"text": ["a", "b", "c"], "ward": ["w1", "w2", "w1"], "label": [0, 1, 0]}
    Dataset.from_dict(data).save_to_disk(tmp_path / "mine")
    name = str(tmp_path / "mine")
    assert source_of(name).ids == ("group", "ward")
    assert documents_of(name, by="ward").groups == ["w1", "w2", "w1"]
    assert documents_of(name).groups == ["part-000", "part-001", "part-002"]
    with pytest.raises(ConfigError, match="can be grouped by group, ward, or by label"):
        documents_of(name, by="doctor")


def test_a_dictionary_of_splits_is_read_by_its_train_split(tmp_path):
    DatasetDict(train=Dataset.from_dict(pages(3)), test=Dataset.from_dict(pages(1))).save_to_disk(
        tmp_path / "splits"
    )
    assert len(documents_in(tmp_path / "splits").texts) == 3
    DatasetDict(test=Dataset.from_dict(pages(1))).save_to_disk(tmp_path / "tests")
    with pytest.raises(DataError, match="a split 'train' expected, got test"):
        documents_in(tmp_path / "tests")


def test_text_files_are_documents_and_their_names_groups(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"text of {name}\n")
    documents = documents_of(str(tmp_path))
    assert documents.texts == ["text of a\n", "text of b\n"]
    assert documents.groups == ["a", "b"]
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"c\.txt cannot be read as text"):
        documents_of(str(tmp_path))


def test_a_folder_of_parquet_files_is_read_whatever_lies_beside_them(tmp_path):
    Dataset.from_dict(pages(4)).to_parquet(tmp_path / "web" / "part.parquet")
    (tmp_path / "web" / "LICENSE.txt").write_text("free")
    assert len(documents_of(str(tmp_path / "web")).texts) == 4


def test_a_folder_with_nothing_to_read_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty cannot be read.*save_to_disk"):
        documents_of(str(tmp_path / "empty"))


def test_a_revision_changes_with_what_is_in_the_folder(tmp_path):
    Dataset.from_dict(pages(3)).save_to_disk(tmp_path / "one")
    Dataset.from_dict(pages(4)).save_to_disk(tmp_path / "two")
    one, two = documents_in(tmp_path / "one"), documents_in(tmp_path / "two")
    assert "" != one.revision != two.revision
    assert one.revision == documents_in(tmp_path / "one").revision
    assert one.thin(2).revision not in (one.revision, one.thin(1).revision)


@pytest.mark.parametrize("name", ["shakespear", "no/such/folder", "./nothing"])
def test_a_name_that_nothing_has_is_refused_before_the_run(name):
    with pytest.raises((UnknownNameError, ConfigError), match=f"{name}"):
        configure({"dataset": name})


def test_names_on_the_hub_and_folders_are_accepted_unseen(tmp_path):
    assert source_of("owner/name:en").about == "owner/name on the hub"
    config = {"dataset": str(tmp_path), "bp-dataset": "owner/name"}
    assert configure(config).data.dataset == str(tmp_path)


@pytest.mark.parametrize("name", sorted(HUB))
def test_every_row_has_an_address_and_columns_of_text(name):
    row = HUB[name][0]
    assert row.hub.count("/") == 1
    assert row.text
    assert DATASETS[name].hub == row.hub


def test_a_saved_folder_is_trained_on(tmp_path):
    Dataset.from_dict(pages(40)).save_to_disk(tmp_path / "mine")
    config = Config(dataset=str(tmp_path / "mine"), block_size=32, num_clients=2)
    corpus = Corpus.of(config, load_model("byte-gpt", 1))
    assert len(corpus.shard(0, 2)) + len(corpus.shard(1, 2)) == len(corpus.training)
    assert len(corpus.held_out)
