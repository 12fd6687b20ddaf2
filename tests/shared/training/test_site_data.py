"""A site can measure on some of its examples and backpropagate on others."""

import logging

from fleet import config, federate

from shared.training.oracle import Oracle
from shared.training.site_data import SiteData


def shards(tmp_path, **changes):
    c = config(tmp_path, mode="instruct", **changes)
    data = SiteData.of(c, Oracle.of(c).language_model)
    return data, data.shard(1, 3)


def rows(examples):
    return {row.tobytes() for row in examples.tokens}


def test_by_default_both_are_the_same_examples(tmp_path):
    _, site = shards(tmp_path)
    assert site.queries is site.gradients


def test_split_halves_are_disjoint_and_complete(tmp_path):
    _, whole = shards(tmp_path)
    _, site = shards(tmp_path, split_bp_zo_data=True)
    assert abs(len(site.queries) - len(site.gradients)) <= 1
    assert len(site.queries) + len(site.gradients) == len(whole.queries)
    assert rows(site.queries) | rows(site.gradients) == rows(whole.queries)


def test_bp_max_samples_bounds_the_examples_of_the_gradients(tmp_path):
    _, site = shards(tmp_path, bp_max_samples=5)
    assert len(site.gradients) == 5
    assert rows(site.gradients) <= rows(site.queries)


def test_another_data_set_is_logged_once_with_both_names_and_sizes(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "dandelion"):
        c = config(tmp_path, mode="calibrate", dataset="topics", bp_dataset="stdlib",
                   max_samples=4, num_rounds=2, partitioner="iid")  # fmt: skip
        data = SiteData.of(c, Oracle.of(c).language_model)
    (line,) = [r.getMessage() for r in caplog.records if "backprop" in r.getMessage()
               or "gradients" in r.getMessage()]  # fmt: skip
    assert f"topics ({len(data.queries.training)} examples)" in line
    assert f"stdlib ({len(data.gradients.training)} examples)" in line


def test_a_run_with_data_apart_lowers_the_loss(tmp_path):
    c = config(tmp_path, mode="instruct", split_bp_zo_data=True, bp_max_samples=20)
    run = federate(c)
    assert run.losses[-1] < run.losses[0]
