"""Committee and roster: nobody chooses them, and one that is too small is refused."""

import pytest

from shared.base.errors import ConfigError
from shared.protocol.site_id import site_of
from shared.sealed.committee import Committee, Roster, sums_needed, usual_size

RUN = b"r" * 16


def roster(count):
    return Roster({site_of({"site": f"ward-{k}"}): bytes([k + 1]) * 32 for k in range(count)})


@pytest.mark.parametrize(
    ("members", "colluders", "needed"),
    [(3, 0, 2), (3, 1, 3), (3, 2, 3), (5, 1, 4), (9, 4, 7), (9, 2, 6), (9, 0, 5), (33, 10, 22)],
)
def test_two_cohorts_are_never_both_summed(members, colluders, needed):
    assert sums_needed(members, colluders) == needed
    honest = members - colluders
    assert 2 * needed > honest + 2 * colluders  # each honest member adds up one cohort
    assert needed > colluders  # and colluders alone open nothing


@pytest.mark.parametrize("colluders", [3, 4])
def test_a_committee_of_colluders_is_refused(colluders):
    with pytest.raises(ConfigError, match=f"privacy-colluders = {colluders} of a committee of 3"):
        sums_needed(3, colluders)


def test_a_committee_is_odd_and_at_most_nine():
    assert [usual_size(n) for n in (3, 4, 5, 8, 9, 10, 100)] == [3, 3, 5, 7, 9, 9, 9]


def test_every_site_draws_the_same_committee_and_each_run_another():
    sites = roster(20)
    shuffled = Roster(dict(reversed(sites.keys.items())))
    first = Committee.draw(sites, RUN, 0, 2)
    assert first == Committee.draw(shuffled, RUN, 0, 2)
    assert sites.digest == shuffled.digest
    assert len({Committee.draw(sites, bytes([k]) * 16, 0, 2).slots for k in range(8)}) > 1
    assert set(first.slots) <= set(sites.by_slot)
    assert Committee.draw(sites, RUN, 20, 2).slots == tuple(sorted(sites.by_slot))


@pytest.mark.parametrize(("count", "size"), [(2, 0), (3, 4), (5, 2)])
def test_too_small_a_federation_is_refused(count, size):
    with pytest.raises(ConfigError, match=r"roster of at least . sites expected"):
        Committee.draw(roster(count), RUN, size, 1)


def test_a_roster_is_read_and_two_that_differ_have_other_digests(tmp_path):
    path = tmp_path / "roster.toml"
    keys = roster(3).keys
    path.write_text("[sites]\n" + "".join(f'"{s.name}" = "{k.hex()}"\n' for s, k in keys.items()))
    assert Roster.read(path) == roster(3)
    assert len({roster(k).digest for k in (2, 3, 4)}) == 3


@pytest.mark.parametrize(
    "text",
    ["", "[sites]\na = 3\n", '[sites]\na = "xy"\n', "sites = 3\n", '[sites]\na = "00"\n', "[",
     '[sites]\na = "' + 64 * "1" + '"\nb = "' + 64 * "1" + '"\n'],
)  # fmt: skip
def test_a_file_that_is_no_roster_is_refused(tmp_path, text):
    path = tmp_path / "roster.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"expected|one key"):
        Roster.read(path)
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        Roster.read(tmp_path / "none.toml")
