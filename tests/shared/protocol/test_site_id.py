"""A site is who its node's config says, in the same place after any restart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.base.errors import ConfigError
from shared.protocol.site_id import NAMED, SiteId, site_of
from shared.randomness.streams import SLOTS


def test_a_numbered_site_has_the_slot_after_its_partition():
    assert site_of({"partition-id": 0}) == SiteId(1, "0")
    assert site_of({"partition-id": 41, "num-partitions": 100}) == SiteId(42, "41")


def test_a_named_site_keeps_its_slot_whatever_its_partition_is():
    name = site_of({"site": "clinic-7"})
    assert name == SiteId(1_219_236_907, "clinic-7")  # a hash: the same on every machine
    assert site_of({"site": "clinic-7", "partition-id": 3}) == name


def test_an_empty_name_is_no_name():
    assert site_of({"site": "", "partition-id": 3}) == SiteId(4, "3")


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=200))
def test_named_slots_meet_no_numbered_one_and_fit_a_key(name):
    assert NAMED <= site_of({"site": name}).slot < SLOTS


@given(st.integers(0, NAMED - 2))
def test_numbered_slots_meet_no_named_one_nor_the_shared_one(partition):
    assert 0 < site_of({"partition-id": partition}).slot < NAMED


def test_sites_are_ordered_by_slot_so_numbers_come_first_and_in_order():
    configs = [{"partition-id": 10}, {"site": "a"}, {"partition-id": 9}]
    assert [site.name for site in sorted(map(site_of, configs))] == ["9", "10", "a"]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"site": ""},
        {"site": 7, "partition-id": 1},
        {"site": "two\nlines"},
        {"site": "x" * 201},
        {"partition-id": -1},
        {"partition-id": True},
        {"partition-id": "0"},
        {"partition-id": NAMED},
    ],
    ids=str,
)
def test_a_node_that_has_neither_name_nor_number_is_told_what_to_set(config):
    with pytest.raises(ConfigError, match="must have site = '<name>' or partition-id = <number>"):
        site_of(config)
