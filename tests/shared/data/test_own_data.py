"""Sites with data of their own: read where they are, by nobody else, and numbered alike."""

import json
from pathlib import Path

import numpy as np
import pytest
from federation import Network, Processes, config, federate, folder_of
from tiny_reviews import folders, reviews  # noqa: F401  (fixtures)

from client.site.node_config import NodeConfig
from shared.base.errors import ConfigError, DataError
from shared.data.documents import Documents
from shared.data.local_folder import check_folder
from shared.models.load import load_model
from shared.tasks.class_names import number_classes
from shared.training.site_data import SiteData

WORDS = ("terrible", "great")
CLASSES = {"task": "classification", "dataset": "tiny-reviews", "block_size": 12,
           "label_words": ", ".join(WORDS), "partitioner": "iid", "max_samples": 0}  # fmt: skip


def notes(folder, name, count=3):
    """A folder of text files that only one site has: its first letter, over and over."""
    own = folder / name
    own.mkdir()
    for number in range(count):
        (own / f"{number}.txt").write_text(name[0] * 200)
    return str(own)


def table(folder, name, rows):
    own = folder / name
    own.mkdir()
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (own / "rows.jsonl").write_text("\n".join(lines))
    return str(own)


class Sites(Network):
    """A network whose nodes have the node configs that are given."""

    def __init__(self, chosen, given, client=None):
        super().__init__(chosen, client or Processes())
        for context, more in zip(self._contexts.values(), given, strict=True):
            context.node_config.clear()
            context.node_config.update(more)


def test_each_site_trains_on_its_own_folder(tmp_path):
    own = [{"site": name, "data": notes(tmp_path, name, 2 + k)} for k, name in enumerate("abc")]
    chosen = config(tmp_path)
    nodes = Processes()
    run = federate(chosen, Sites(chosen, own, nodes))
    assert run.summary["rounds"] == 3
    for given, node in zip(own, (2, 3, 4), strict=True):
        host = nodes.host(node)
        examples = host._sites[given["site"]].examples
        ends = host._oracle.language_model.tokenizer
        assert set(np.unique(examples.tokens)) - {ends.end} == {*ends.encode(given["site"])}
        assert list(host._data) == [(given["data"], "")]  # and the run's was not even read
        assert host._data[given["data"], ""].queries.held_out.tokens.shape[0] == 0
    sizes = {row[2]: row[3] for row in run.rows["contributions"]}
    assert sizes["a"] < sizes["b"] < sizes["c"]


def test_each_sites_columns_may_have_names_of_their_own(tmp_path):
    """The run names columns as most sites do; the others say what theirs are called."""
    usual, others = ("note", "outcome"), ("Befund", "Ergebnis")
    for name, (text, label) in (("a", usual), ("b", others), ("c", usual)):
        (tmp_path / name).mkdir()
        rows = [{text: f"{name} was {('bad', 'good')[k % 2]}", label: k % 2} for k in range(20)]
        (tmp_path / name / "visits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = [{"site": name, "data": str(tmp_path / name)} for name in "abc"]
    own[1] |= {"text-column": "Befund", "label-column": "Ergebnis"}
    settings = {"text_column": "note", "label_column": "outcome", "dataset": str(tmp_path / "a")}
    chosen = config(tmp_path, **CLASSES | settings | {"prompt": "{text} It was ", "block_size": 32})
    nodes = Processes()
    run = federate(chosen, Sites(chosen, own, nodes))
    assert {row[2] for row in run.rows["contributions"]} == {"a", "b", "c"}
    examples = nodes.host(3)._sites["b"].examples
    ends = nodes.host(3)._oracle.language_model.tokenizer
    assert examples.tokens[0].tolist()[:5] == list(ends.encode("b was"))
    assert sorted(set(examples.labels.tolist())) == [0, 1]


def test_columns_that_are_none_are_found_when_a_site_joins(tmp_path):
    own = Path(table(tmp_path, "rows", [("a text", 1)]))
    check_folder(own, {"text-column": "text", "label-column": "label"})
    with pytest.raises(ConfigError, match=r"text-column: .* has columns text, label, got 'note'"):
        check_folder(own, {"text-column": "text, note"})
    with pytest.raises(ConfigError, match="holds plain texts, got 'note'"):
        check_folder(Path(notes(tmp_path, "plain")), {"text-column": "note"})
    (own / "rows.jsonl").write_text('{"text": ')
    with pytest.raises(DataError, match=r"rows\.jsonl cannot be read"):
        check_folder(own, {})


def test_one_site_has_its_own_and_others_a_share_of_the_runs(tmp_path):
    given = [{"site": "a", "data": notes(tmp_path, "a")},
             {"partition-id": 0, "num-partitions": 2},
             {"partition-id": 1, "num-partitions": 2}]  # fmt: skip
    chosen = config(tmp_path)
    run = federate(chosen, Sites(chosen, given))
    sites = {row[2] for row in run.rows["contributions"]}
    assert sites == {"a", "0", "1"}
    whole = len(SiteData.of(chosen, load_model("byte-gpt", 1)).queries.training)
    sizes = {row[2]: row[3] for row in run.rows["contributions"]}
    assert sizes["0"] + sizes["1"] == whole
    assert '"examples"' in (folder_of(chosen) / "shards.json").read_text()


def test_hosts_that_share_a_folder_need_no_run_data_set_with_as_many_groups(tmp_path):
    """The server's own has fewer groups than shards: the data distribution is sizes alone."""
    own = notes(tmp_path, "ward", 8)
    server = notes(tmp_path, "server", 2)
    given = [{"data": own, "partition-id": k, "num-partitions": 3} for k in range(3)]
    chosen = config(tmp_path, dataset=server, max_samples=0, partitioner="natural")
    run = federate(chosen, Sites(chosen, given))
    assert run.summary["rounds"] == 3
    assert (folder_of(chosen) / "shards.json").exists()


def test_errors_in_a_sites_data_stay_in_its_own_log(tmp_path, caplog):
    own = tmp_path / "ward"
    own.mkdir()
    (own / "jane-doe.txt").write_bytes(b"\xff\xfe\xfa")
    given = [{"site": "a", "data": str(own)}, {"partition-id": 0, "num-partitions": 2},
             {"partition-id": 1, "num-partitions": 2}]  # fmt: skip
    chosen = config(tmp_path, min_clients=2)
    run = federate(chosen, Sites(chosen, given))
    refusals = [row for row in run.rows["refusals"] if "own data" in row[4]]
    assert refusals
    assert "jane" not in str(run.rows["refusals"])
    assert str(own) not in str(run.rows["refusals"])
    assert "jane-doe.txt" in caplog.text


def test_two_data_sets_are_apart_already(tmp_path):
    chosen = config(tmp_path, split_bp_zo_data=True)
    model = load_model("byte-gpt", 1)
    one = SiteData.of(chosen, model, notes(tmp_path, "a", 4)).shard(0, 1)
    two = SiteData.of(chosen, model, str(tmp_path / "a"), notes(tmp_path, "b", 1)).shard(0, 1)
    assert len(one.queries) + len(one.gradients) == len(two.queries)
    assert len(two.gradients) == 201 // 16


def test_hosts_of_one_site_may_share_its_folder(tmp_path):
    own = notes(tmp_path, "ward", 8)
    data = SiteData.of(config(tmp_path), load_model("byte-gpt", 1), own)
    halves = [data.shard(number, 2).queries for number in range(2)]
    assert sum(map(len, halves)) == len(data.shard(0, 1).queries)


def test_gradients_are_taken_on_other_data_where_a_site_says_so(tmp_path):
    own, other, chosen = notes(tmp_path, "a"), notes(tmp_path, "b", 5), config(tmp_path)
    model = load_model("byte-gpt", 1)
    plain = SiteData.of(chosen, model, own).shard(0, 1)
    assert plain.gradients is plain.queries
    apart = SiteData.of(chosen, model, own, other).shard(0, 1)
    assert len(apart.gradients) > len(apart.queries) == len(plain.queries)
    only = SiteData.of(chosen, model, "", other)
    assert len(only.queries.held_out)
    assert len(only.shard(0, 1).gradients) == len(apart.gradients)
    public = config(tmp_path, bp_dataset=other)
    assert SiteData.of(public, model, own).gradients.config.data.dataset == other


def test_a_site_evaluates_on_a_part_of_its_own(tmp_path):
    chosen = config(tmp_path, site_eval_fraction=0.25)
    shards = SiteData.of(chosen, load_model("byte-gpt", 1), notes(tmp_path, "a", 8)).shard(0, 1)
    assert len(shards.held_out) > 0


def test_a_folder_that_is_not_there_refuses_the_site_and_says_why(tmp_path):
    given = [{"site": "a", "data": str(tmp_path / "none")},
             {"partition-id": 0, "num-partitions": 2},
             {"partition-id": 1, "num-partitions": 2}]  # fmt: skip
    chosen = config(tmp_path, min_clients=2)
    run = federate(chosen, Sites(chosen, given))
    assert {row[2] for row in run.rows["contributions"]} == {"0", "1"}


@pytest.mark.parametrize("name", ["./here", "~/there", "../up"])
def test_a_folder_is_named_from_the_root(name):
    with pytest.raises(ConfigError, match="data: a folder's absolute path or a data set's name"):
        NodeConfig.of({"site": "a", "data": name})


def test_classes_have_the_same_numbers_at_every_site(folders, tmp_path):
    both = table(tmp_path, "both", [("the film was good", "great"), ("bad plot", "terrible")] * 4)
    one = table(tmp_path, "one", [("the film was good", "great")] * 4)
    numbers = table(tmp_path, "numbers", [("the film was good", "1")] * 4)
    chosen = config(tmp_path, model=folders["head"], **CLASSES)
    model = load_model(folders["head"], 1, WORDS)
    labels = {
        name: set(SiteData.of(chosen, model, own).shard(0, 1).queries.labels.tolist())
        for name, own in (("both", both), ("one", one), ("numbers", numbers))
    }
    assert labels == {"both": {0, 1}, "one": {1}, "numbers": {1}}
    other = table(tmp_path, "other", [("the film was good", "fresh"), ("bad plot", "rotten")] * 4)
    with pytest.raises(DataError, match=r"label-words says, terrible, great, .* got fresh, rotten"):
        SiteData.of(chosen, model, other)


def test_numbers_that_are_words_are_words():
    stars = [str(k) for k in range(1, 6)]
    rated = Documents(["a", "b"], ["g", "g"], [0, 1], ("2", "5"))
    assert number_classes(rated, stars).labels == [1, 4]
    numbered = Documents(["a", "b"], ["g", "g"], [0, 1], ("0", "4"))
    with pytest.raises(DataError, match="got 0"):
        number_classes(numbered, stars)


def test_what_has_no_classes_is_left_to_the_task():
    plain = Documents(["a"], ["g"])
    assert number_classes(plain, WORDS) is plain
