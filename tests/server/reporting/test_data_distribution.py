"""Who holds what: the table of a run is what its sites were dealt, and says so only if it is."""

import csv
import json

import numpy as np
import pytest
from federation import config, scratch

from dandelion.engines.local import run_local
from server.reporting import data_distribution as holdings
from server.reporting.data_distribution import (
    Holding,
    draw,
    holdings_of_partition,
    holdings_of_run,
    read,
    title_of,
    write,
)
from shared.config.schema import Config
from shared.data.examples import Examples
from shared.models.load import load_model
from shared.training.corpus import Corpus


def blocks(groups, labels=None):
    tokens = np.zeros((len(groups), 4), np.int32)
    tokens[0, 2:] = -1
    names = ("play", "poem", "song")
    return Examples(tokens, np.array(groups), names, None if labels is None else np.array(labels))


def test_a_holding_counts_groups_classes_and_lengths():
    found = Holding.of("3", blocks([0, 1, 1], [1, 1, 0]), ("bad", "good", "none"))
    assert found == Holding(
        "3", 3, (2, 4, 4), {"poem": 2, "play": 1}, {"bad": 1, "good": 2, "none": 0}
    )
    assert Holding.of("3", blocks([2]), ()) == Holding("3", 1, (4, 4, 4), {"song": 1}, {})


@pytest.mark.parametrize("rule", ["natural", "iid", "dirichlet"])
def test_what_is_dealt_adds_up_to_the_corpus(rule):
    chosen = Config(dataset="topics", max_samples=20, partitioner=rule, block_size=32)
    corpus = Corpus.of(chosen, load_model("byte-gpt", 1))
    found = holdings_of_partition(corpus, 4)
    assert sum(h.examples for h in found) == len(corpus.training)
    for place, name in enumerate(corpus.training.names):
        size = int((corpus.training.groups == place).sum())
        assert sum(h.groups.get(name, 0) for h in found) == size
    assert [h.examples for h in found] == [len(corpus.shard(n, 4)) for n in range(4)]


def test_a_run_leaves_table_and_picture_of_who_holds_what():
    with scratch() as folder:
        chosen = config(folder, num_rounds=1)
        run = run_local(chosen)
        corpus = Corpus.of(chosen, load_model("byte-gpt", 1))
        as_written = json.loads(json.dumps([vars(h) for h in holdings_of_partition(corpus, 3)]))
        assert [vars(h) for h in read(run)] == as_written
        rows = list(csv.DictReader((run / "shards.csv").read_text().splitlines()))
        sizes = {row["site"]: int(row["examples"]) for row in rows if row["kind"] == "all"}
        assert sizes == {str(n): len(corpus.shard(n, 3)) for n in range(3)}
        assert (run / "shards.png").read_bytes()[:4] == b"\x89PNG"


class Said:
    """A ledger's table of sites."""

    def __init__(self, *sites):
        self.sites = sites

    def rows(self, query):
        assert "FROM sites" in query
        return list(self.sites)


def test_sites_with_data_of_their_own_say_only_how_many(tmp_path):
    corpus = Corpus.of(config(tmp_path), load_model("byte-gpt", 1))
    sizes = [len(corpus.shard(number, 3)) for number in range(3)]
    as_dealt = [(1 + number, str(number), size) for number, size in enumerate(sizes)]
    assert holdings_of_run(Said(*as_dealt), corpus) == holdings_of_partition(corpus, 3)
    others = [*as_dealt[:2], (3, "2", sizes[2] + 1)], [*as_dealt[:2]], [(1 << 30, "ward", 9)]
    for sites in others:
        found = holdings_of_run(Said(*sites), corpus)
        assert [(h.site, h.examples) for h in found] == [(name, size) for _, name, size in sites]
        assert all(h.groups == h.classes == {} for h in found)


@pytest.mark.parametrize("count", [1, 70])
@pytest.mark.parametrize("names", [0, 2, 40])
def test_any_number_of_sites_and_groups_can_be_drawn(tmp_path, count, names):
    groups = {f"group ${n}": 100 - n for n in range(names)}
    size = sum(groups.values()) or 5
    found = [Holding(f"site {n}", size, (1, 2, 3), groups, {}) for n in range(count)]
    write(found, tmp_path)
    draw(found, title_of(Config(partitioner="dirichlet")), tmp_path / holdings.PICTURE)
    assert (tmp_path / holdings.PICTURE).stat().st_size > 5000


def test_the_title_says_how_data_were_dealt():
    assert title_of(Config()) == "stdlib dealt: natural"
    chosen = Config(dataset="/data/mine", partition_by="ward", partitioner="flower-dirichlet")
    assert title_of(chosen) == "mine dealt by ward: flower-dirichlet, alpha = 0.5"
