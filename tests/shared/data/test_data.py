"""Documents come in one order, shards and held-out blocks are partitions."""

import math
import sysconfig
from collections import Counter
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.errors import ConfigError, DataError, UnknownNameError
from shared.data.documents import DATASETS, Documents, space_evenly
from shared.data.examples import cut_blocks
from shared.data.flower_partitioners import PARTITIONERS
from shared.data.hold_out import hold_out
from shared.data.partition_rules import RULES, partition
from shared.data.resolve import documents_of
from shared.models.tokenizers import ByteTokenizer
from shared.training.validate import configure

BYTES = ByteTokenizer()


def digest(arrays):
    return sha256(b"|".join(array.astype("<i8").tobytes() for array in arrays)).hexdigest()[:16]


# --- documents


EMBEDDED = [name for name in DATASETS.names() if DATASETS[name].kind == "embedded"]


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_data_set_says_what_it_is_and_where_it_comes_from(name):
    source = DATASETS[name]
    assert source.kind in ("embedded", "packaged", "hub", "local")
    assert source.ids
    assert source.about
    assert source.size
    assert source.licence
    assert source.origin
    assert isinstance(source.is_here, bool)


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_data_set_is_the_same_on_every_call(name):
    first, second = documents_of(name, 20), documents_of(name, 20)
    assert first == second
    assert len(first.texts) == 20
    assert all(first.texts)


def test_the_standard_library_is_grouped_by_module_without_tests_and_packages():
    documents = documents_of("stdlib", 0)
    groups = Counter(documents.groups)
    assert groups["asyncio"] > 20
    assert groups["argparse"] == 1
    assert not groups.keys() & {"test", "site-packages", "__pycache__"}
    assert len(documents.texts) > 400


def test_a_sample_of_the_standard_library_spans_it():
    groups = documents_of("stdlib", 40).groups
    assert groups[0] < "b"
    assert groups[-1] > "u"


def test_stripped_sources_are_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "gone")})
    with pytest.raises(DataError, match=r"no Python sources in .*gone.*dataset = topics"):
        documents_of("stdlib", 0)


def test_a_source_that_is_not_text_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_bytes(b"x = '\xff'\n")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match=r"broken\.py cannot be read"):
        documents_of("stdlib", 0)


def test_documents_need_a_group_and_a_label_each():
    with pytest.raises(DataError, match="groups and labels"):
        Documents(["a", "b"], ["g"])
    with pytest.raises(DataError, match="groups and labels"):
        Documents(["a", "b"], ["g", "g"], [1])


def test_thinning_keeps_labels_with_their_texts():
    documents = Documents(list("abcdef"), list("ABCDEF"), range(6)).thin(3)
    assert documents == Documents(["b", "d", "f"], ["B", "D", "F"], [1, 3, 5])


@given(st.integers(1, 300), st.integers(1, 300))
def test_evenly_spaced_rows_are_distinct_and_within_bounds(total, count):
    rows = space_evenly(total, count)
    assert len(rows) == count
    assert 0 <= rows[0] <= rows[-1] < total
    assert len(set(rows)) == min(total, count)


# --- shards


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=200),
    st.integers(1, 6),
    st.sampled_from(sorted(RULES)),
    st.integers(0, 2**64 - 1),
)
def test_shards_are_disjoint_complete_and_none_is_empty(ids, count, rule, seed):
    try:
        shards = partition(ids, count, rule, seed)
    except ConfigError:
        assert rule == "dirichlet" or count > len(set(ids))
        return
    assert len(shards) == count
    assert all(len(rows) for rows in shards)
    assert sorted(np.concatenate(shards)) == list(range(len(ids)))
    assert all((np.diff(rows) > 0).all() for rows in shards)


@settings(max_examples=8, deadline=None)
@given(
    ids=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    count=st.integers(1, 5),
    classes=st.integers(1, 4),
    seed=st.integers(0, 2**63 - 1),
)
@pytest.mark.parametrize("rule", sorted(PARTITIONERS))
def test_flowers_partitioners_assign_each_item_once_or_say_why_not(rule, ids, count, classes, seed):
    try:
        shards, reason = partition(ids, count, rule, seed, 0.5, classes), ""
    except ConfigError as error:
        shards, reason = [], str(error)
    if reason:
        assert rule in reason or count > len(ids)
        return
    assert len(shards) == count
    assert all(len(rows) for rows in shards)
    assert sorted(np.concatenate(shards)) == list(range(len(ids)))
    assert all(
        np.array_equal(first, second)
        for first, second in zip(
            shards, partition(ids, count, rule, seed, 0.5, classes), strict=True
        )
    )


def test_flowers_partitioners_do_what_their_names_say():
    ids = np.repeat(np.arange(6), 50)
    owners = [set(ids[rows]) for rows in partition(ids, 6, "flower-natural")]
    assert owners == [{0}, {1}, {2}, {3}, {4}, {5}]
    assert [len(rows) for rows in partition(ids, 4, "flower-iid")] == [75, 75, 75, 75]
    assert {len(set(ids[rows])) for rows in partition(ids, 4, "flower-iid")} == {6}
    classes = [len(set(ids[rows])) for rows in partition(ids, 6, "flower-pathological", classes=3)]
    assert classes == [3] * 6
    sizes = [len(rows) for rows in partition(ids, 4, "flower-linear")]
    assert sizes == sorted(sizes)
    assert sizes[3] > 3.5 * sizes[0]
    skewed = [len(set(ids[rows])) for rows in partition(ids, 12, "flower-dirichlet", alpha=0.05)]
    assert np.mean(skewed) < 4
    with pytest.raises(ConfigError, match="one shard for each of 6 ids"):
        partition(ids, 5, "flower-natural")
    with pytest.raises(ConfigError, match=r"gives \d+ of 300 items to none of 2 shards"):
        partition(ids, 2, "flower-pathological", classes=2)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(1, 6))
def test_natural_shards_split_no_group_and_are_balanced(ids, count):
    sizes = Counter(ids)
    if len(sizes) < count:
        with pytest.raises(ConfigError, match=f"{len(sizes)} groups|{len(ids)} shards"):
            partition(ids, count)
        return
    shards = partition(ids, count)
    owners = [{ids[row] for row in rows} for rows in shards]
    assert sum(map(len, owners)) == len(sizes)
    lengths = [len(rows) for rows in shards]
    assert max(lengths) - min(lengths) <= max(sizes.values())


def test_random_rules_give_the_same_partition_on_every_machine():
    ids = np.repeat(np.arange(7), 100)
    assert digest(partition(ids, 5, "iid", seed=3)) == "22fe91c80b09a7b1"
    assert digest(partition(ids, 5, "dirichlet", seed=3, alpha=0.5)) == "101f1efa1be2f13b"
    assert digest(partition(ids, 5, "iid", seed=4)) != digest(partition(ids, 5, "iid", seed=3))


def test_iid_shards_differ_by_one_item_at_most_and_mix_groups():
    shards = partition(np.repeat(np.arange(4), 250), 7, "iid")
    assert {len(rows) for rows in shards} == {142, 143}
    assert all(len(set(rows // 250)) == 4 for rows in shards)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_dirichlet_proportions_have_the_variance_of_a_dirichlet(alpha):
    groups, items, count = 1000, 100, 4
    shards = partition(np.repeat(np.arange(groups), items), count, "dirichlet", 1, alpha)
    shares = np.stack([np.bincount(rows // items, minlength=groups) for rows in shards]) / items
    spread = (1 / count) * (1 - 1 / count) / (count * alpha + 1)  # of a Dirichlet's parts
    counted = spread + ((1 / count) * (1 - 1 / count) - spread) / items  # of counts drawn from it
    assert shares.var() == pytest.approx(counted, rel=0.1)  # 4,000 shares: 5 deviations
    assert shares.mean(axis=1) == pytest.approx(np.full(count, 0.25), abs=0.07)


def test_an_impossible_partition_is_refused_with_the_numbers():
    with pytest.raises(ConfigError, match="between 1 and 3 shards expected for 3 items: 4"):
        partition([0, 1, 2], 4, "iid")
    with pytest.raises(ConfigError, match=r"alpha = 0\.001 left one of 40 shards"):
        partition([0] * 60, 40, "dirichlet", alpha=0.001)
    with pytest.raises(ConfigError, match="alpha"):
        partition([0, 1], 2, "dirichlet", alpha=float("nan"))
    with pytest.raises(UnknownNameError, match=r"known: dirichlet, flower-dirichlet, .* natural"):
        partition([0, 1], 2, "natrual")


# --- blocks


def test_blocks_are_the_documents_of_a_group_joined_by_the_end_of_text():
    blocks = cut_blocks(Documents(["abcd", "zz", "ef"], ["m", "n", "m"]), BYTES, 4)
    assert blocks.names == ("m", "n")
    assert blocks.groups.tolist() == [0, 0]  # "n" has 3 tokens: no block
    assert blocks.tokens.dtype == np.uint16
    joined = [*b"abcd", -2, *b"ef", -2]  # the end token is 1: three less
    assert blocks.batch(np.array([0, 1])).tolist() == [
        [token + 3 for token in joined[:4]],
        [token + 3 for token in joined[4:]],
    ]


def test_documents_shorter_than_a_block_are_an_error():
    with pytest.raises(DataError, match="none of 2 groups"):
        cut_blocks(Documents(["abc", "d"], ["m", "n"]), BYTES, 64)
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        cut_blocks(Documents(["abc"], ["m"]), BYTES, 1)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any),
    st.sampled_from([0.0, 0.05, 0.25, 0.9]),
)
def test_held_out_blocks_are_the_last_of_each_group_and_apart(sizes, fraction):
    """Unless groups are so small that another share than the fraction would be held out."""
    texts = ["x" * (4 * size) for size in sizes]
    blocks = cut_blocks(Documents(texts, [f"g{n}" for n in range(len(sizes))]), BYTES, 4)
    blocks.tokens[:] = np.arange(len(blocks))[:, None]  # each block tells its row
    training, evaluation = hold_out(blocks, fraction)
    rows = np.sort(np.concatenate([training.tokens[:, 0], evaluation.tokens[:, 0]]))
    assert rows.tolist() == [*range(len(blocks))]
    ends = sum(max(1, int(size * fraction)) if size > 1 and fraction else 0 for size in sizes)
    share = min(math.ceil(fraction * len(blocks)), len(blocks) - 1)
    if not (share // 2 <= ends <= 2 * share and (ends or not share)):
        assert len(evaluation) == share
        return
    for group, size in enumerate(sizes):
        first = training.tokens[training.groups == group, 0].tolist()
        last = evaluation.tokens[evaluation.groups == group, 0].tolist()
        assert first + last == np.flatnonzero(blocks.groups == group).tolist()
        assert len(last) == (max(1, int(size * fraction)) if size > 1 and fraction else 0)


def test_a_cap_on_the_evaluation_leaves_each_group_its_part():
    texts = ["x" * 4000, "x" * 2000, "x" * 1000]
    blocks = cut_blocks(Documents(texts, ["a", "b", "c"]), BYTES, 4)
    training, evaluation = hold_out(blocks, 0.5, most=70)
    assert np.bincount(evaluation.groups).tolist() == [40, 20, 10]
    assert len(training) == len(hold_out(blocks, 0.5)[0])
    with pytest.raises(ConfigError, match="fraction"):
        hold_out(blocks, 1.0)


# --- parts


@given(count=st.integers(1, 6), groups=st.lists(st.sampled_from("abcdefgh"), min_size=8))
@settings(max_examples=50, deadline=None)
def test_parts_are_whole_groups_disjoint_and_together_all(count, groups):
    documents = Documents([str(row) for row in range(len(groups))], groups)
    if len(set(groups)) < count:
        with pytest.raises(ConfigError, match="are no"):
            documents.share(f"1/{count}")
        return
    parts = [documents.share(f"{number}/{count}") for number in range(1, count + 1)]
    texts = [text for part in parts for text in part.texts]
    assert sorted(texts, key=int) == documents.texts
    assert sum(len(set(part.groups)) for part in parts) == len(set(groups))


@pytest.mark.parametrize("text", ["0/2", "3/2", "half", "1/", "-1/2", "1/0"])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="k/n with k from 1 to n expected"):
        configure({"data-part": text})
