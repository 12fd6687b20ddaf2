"""Examples are tokenised once: what is kept is what was made, and anything else is made anew."""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from shared.config.schema import Config
from shared.data.documents import DATASETS, Documents, Source
from shared.data.examples import Examples
from shared.models.load import load_model
from shared.models.tokenizers import NOTHING, ByteTokenizer, HubTokenizer
from shared.training.corpus import Corpus
from shared.training.example_cache import (
    EXAMPLES_FILE,
    FINGERPRINT_FILE,
    FORMAT,
    load_or_make,
    revision_of,
)

SETTINGS = {"dataset": "texts", "block size": 4}
TEXTS = Documents(["one", "two"], ["a", "b"], [1, 0])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "blocks"


def some_blocks(dtype=np.uint16, labels=None, rows=3):
    tokens = np.arange(4 * rows, dtype=dtype).reshape(rows, 4)
    return Examples(tokens, np.sort(np.arange(rows) % 2), ("ä", "b"), labels)


def same(first, second):
    return (
        np.array_equal(first.tokens, second.tokens)
        and first.tokens.dtype == second.tokens.dtype
        and np.array_equal(first.groups, second.groups)
        and first.names == second.names
        and (first.labels is None) == (second.labels is None)
        and (first.labels is None or np.array_equal(first.labels, second.labels))
    )


class Maker:
    """Makes blocks and counts how often."""

    def __init__(self, blocks):
        self.blocks, self.times = blocks, 0

    def __call__(self):
        self.times += 1
        return self.blocks


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize("labels", [None, np.array([2, 0, 1])])
def test_stored_examples_are_read_as_they_were_made(dtype, labels):
    make = Maker(some_blocks(dtype, labels))
    first, second = (load_or_make(SETTINGS, "t", TEXTS, make) for _ in range(2))
    assert make.times == 1
    assert same(first, make.blocks)
    assert same(second, make.blocks)


@pytest.mark.parametrize("other", [
    ({**SETTINGS, "block size": 5}, "t", TEXTS),
    ({**SETTINGS, "dataset": "others"}, "t", TEXTS),
    ({**SETTINGS, "max samples": 2}, "t", TEXTS),
    (SETTINGS, "u", TEXTS),
    (SETTINGS, "t", Documents(["one", "twO"], ["a", "b"], [1, 0])),
    (SETTINGS, "t", Documents(["one", "two"], ["a", "c"], [1, 0])),
    (SETTINGS, "t", Documents(["one", "two"], ["a", "b"], [1, 1])),
    (SETTINGS, "t", replace(TEXTS, revision="2")),
    (SETTINGS, "t", replace(TEXTS, held_out=[True, True])),
])  # fmt: skip
def test_another_purpose_or_revision_is_made_anew(other):
    load_or_make(SETTINGS, "t", TEXTS, Maker(some_blocks()))
    make = Maker(some_blocks(rows=5))
    assert len(load_or_make(*other, make)) == 5
    assert make.times == 1
    assert len(load_or_make(*other, make)) == 5
    assert make.times == 1


def test_a_new_revision_replaces_the_old_one(cache, caplog):
    load_or_make(SETTINGS, "t", replace(TEXTS, revision="1"), Maker(some_blocks()))
    load_or_make(SETTINGS, "t", replace(TEXTS, revision="2"), Maker(some_blocks()))
    assert len(list(cache.iterdir())) == 1
    assert "made anew" in caplog.text


def test_the_folder_says_what_the_examples_were_made_of(cache):
    load_or_make(SETTINGS, "t", TEXTS, Maker(some_blocks()))
    (folder,) = cache.iterdir()
    about = json.loads((folder / FINGERPRINT_FILE).read_text())
    assert about["dataset"] == "texts"
    assert about["tokenizer"] == "t"
    assert about["block size"] == 4
    assert about["revision"] == revision_of(TEXTS)
    assert about["names"] == ["ä", "b"]
    assert about["examples"] == 3


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [
    lambda folder: flip(folder / EXAMPLES_FILE),
    lambda folder: (folder / EXAMPLES_FILE).unlink(),
    lambda folder: (folder / EXAMPLES_FILE).write_bytes(b""),
    lambda folder: (folder / FINGERPRINT_FILE).unlink(),
    lambda folder: (folder / FINGERPRINT_FILE).write_text("{"),
    lambda folder: (folder / FINGERPRINT_FILE).write_text("[]"),
    lambda folder: (folder / FINGERPRINT_FILE).write_text(
        (folder / FINGERPRINT_FILE).read_text().replace(f'"format": {FORMAT}', '"format": 0')
    ),
])  # fmt: skip
def test_a_damaged_cache_is_made_anew(cache, harm):
    make = Maker(some_blocks())
    load_or_make(SETTINGS, "t", TEXTS, make)
    (folder,) = cache.iterdir()
    harm(folder)
    assert same(load_or_make(SETTINGS, "t", TEXTS, make), make.blocks)
    assert make.times == 2


# --- in a run


@dataclass(frozen=True)
class Counting(HubTokenizer):
    """Bytes under another name, which notes the texts that it encodes."""

    texts: list[str] = field(default_factory=list)
    size = 259
    identity = "counting"
    start = NOTHING

    def encode(self, text):
        self.texts.append(text)
        return ByteTokenizer().encode(text)


def test_a_corpus_is_tokenised_once_and_the_same_when_read(monkeypatch, cache):
    texts = Documents([f"text number {n} " * 9 for n in range(8)], list("aabbccdd"))
    source = Source(lambda most, by: texts.thin(most), "local", "", ("group",), "", "")
    monkeypatch.setitem(DATASETS._known, "texts", source)
    model = load_model("byte-gpt", 1)
    counting = replace(model, tokenizer=Counting(None, 1))
    config = Config(dataset="texts", block_size=16)
    plain = Corpus.of(config, model)
    assert not cache.exists()
    first = Corpus.of(config, counting)
    assert len(counting.tokenizer.texts) == 8
    second = Corpus.of(config, counting)
    assert len(counting.tokenizer.texts) == 8
    for corpus in (first, second):
        assert same(corpus.training, plain.training)
        assert same(corpus.held_out, plain.held_out)
        assert same(corpus.shard(1, 4), plain.shard(1, 4))
    Corpus.of(config.replace(max_samples=4), counting)
    assert len(counting.tokenizer.texts) == 12
