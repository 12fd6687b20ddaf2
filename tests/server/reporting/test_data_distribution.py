"""The data distribution of a run is that of the partition only if its sites have these sizes."""

import csv
import json

import numpy as np
import pytest
from federation import config, scratch

from dandelion.engines.local import run_local
from server.ledger.records import RecordedSite
from server.reporting import data_distribution
from server.reporting.data_distribution import (
    ShardSummary,
    draw,
    read,
    summarize_partition,
    summarize_run,
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


def test_a_shard_summary_counts_groups_classes_and_lengths():
    shards = ShardSummary.of("3", blocks([0, 1, 1], [1, 1, 0]), ("bad", "good", "none"))
    assert shards == ShardSummary(
        "3", 3, (2, 4, 4), {"poem": 2, "play": 1}, {"bad": 1, "good": 2, "none": 0}
    )
    assert ShardSummary.of("3", blocks([2]), ()) == ShardSummary("3", 1, (4, 4, 4), {"song": 1}, {})


@pytest.mark.parametrize("rule", ["natural", "iid", "dirichlet"])
def test_the_shards_of_a_partition_add_up_to_the_corpus(rule):
    chosen = Config(dataset="topics", max_samples=20, partitioner=rule, block_size=32)
    corpus = Corpus.of(chosen, load_model("byte-gpt", 1))
    shards = summarize_partition(corpus, 4)
    assert sum(h.examples for h in shards) == len(corpus.training)
    for group, name in enumerate(corpus.training.names):
        size = int((corpus.training.groups == group).sum())
        assert sum(h.groups.get(name, 0) for h in shards) == size
    assert [h.examples for h in shards] == [len(corpus.shard(n, 4)) for n in range(4)]


def test_a_run_writes_table_and_plot_of_its_data_distribution():
    with scratch() as folder:
        chosen = config(folder, num_rounds=1)
        run = run_local(chosen)
        corpus = Corpus.of(chosen, load_model("byte-gpt", 1))
        as_written = json.loads(json.dumps([vars(h) for h in summarize_partition(corpus, 3)]))
        assert [vars(h) for h in read(run)] == as_written
        rows = list(csv.DictReader((run / "shards.csv").read_text().splitlines()))
        sizes = {row["site"]: int(row["examples"]) for row in rows if row["kind"] == "all"}
        assert sizes == {str(n): len(corpus.shard(n, 3)) for n in range(3)}
        assert (run / "shards.png").read_bytes()[:4] == b"\x89PNG"


class LedgerOf:
    """A ledger that has these sites: slot, name, examples of each."""

    def __init__(self, *sites):
        self._sites = [RecordedSite(name, slot, "cpu", size) for slot, name, size in sites]

    def sites(self):
        return self._sites


def test_of_sites_with_data_of_their_own_only_the_number_is_known(tmp_path):
    corpus = Corpus.of(config(tmp_path), load_model("byte-gpt", 1))
    sizes = [len(corpus.shard(number, 3)) for number in range(3)]
    partition = [(1 + number, str(number), size) for number, size in enumerate(sizes)]
    assert summarize_run(LedgerOf(*partition), corpus) == summarize_partition(corpus, 3)
    others = [*partition[:2], (3, "2", sizes[2] + 1)], [*partition[:2]], [(1 << 30, "ward", 9)]
    for sites in others:
        shards = summarize_run(LedgerOf(*sites), corpus)
        assert [(h.site, h.examples) for h in shards] == [(name, size) for _, name, size in sites]
        assert all(h.groups == h.classes == {} for h in shards)


@pytest.mark.parametrize("count", [1, 70])
@pytest.mark.parametrize("names", [0, 2, 40])
def test_any_number_of_sites_and_groups_can_be_drawn(tmp_path, count, names):
    groups = {f"group ${n}": 100 - n for n in range(names)}
    size = sum(groups.values()) or 5
    shards = [ShardSummary(f"site {n}", size, (1, 2, 3), groups, {}) for n in range(count)]
    write(shards, tmp_path)
    draw(
        shards,
        title_of(Config(partitioner="dirichlet").data),
        tmp_path / data_distribution.SHARDS_PNG,
    )
    assert (tmp_path / data_distribution.SHARDS_PNG).stat().st_size > 5000


def test_the_title_says_how_data_were_partitioned():
    assert title_of(Config().data) == "stdlib partitioned: natural"
    chosen = Config(dataset="/data/mine", partition_by="ward", partitioner="flower-dirichlet")
    assert title_of(chosen.data) == "mine partitioned by ward: flower-dirichlet, alpha = 0.5"
