"""What is measured on and what is backpropagated on can be kept apart."""

import logging

from fleet import config, federate

from shared.training.oracle import Oracle
from shared.training.site_data import SiteData


def shards(tmp_path, **changes):
    c = config(tmp_path, mode="instruct", **changes)
    data = SiteData.of(c, Oracle.of(c).language_model)
    return data, data.shard(1, 3)


def rows(blocks):
    return {row.tobytes() for row in blocks.tokens}


def test_by_default_both_are_the_same_examples(tmp_path):
    _, found = shards(tmp_path)
    assert found.queries is found.gradients


def test_split_halves_are_disjoint_and_complete(tmp_path):
    _, whole = shards(tmp_path)
    _, found = shards(tmp_path, split_bp_zo_data=True)
    assert abs(len(found.queries) - len(found.gradients)) <= 1
    assert len(found.queries) + len(found.gradients) == len(whole.queries)
    assert rows(found.queries) | rows(found.gradients) == rows(whole.queries)


def test_at_most_so_many_examples_are_backpropagated_on(tmp_path):
    _, found = shards(tmp_path, bp_max_samples=5)
    assert len(found.gradients) == 5
    assert rows(found.gradients) <= rows(found.queries)


def test_another_data_set_is_said_once_with_both_names_and_sizes(tmp_path, caplog):
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
    found = federate(c)
    assert found.losses[-1] < found.losses[0]
