"""The benchmark of what sealed sums cost: rows of three kinds of rounds, and bytes by theory."""

import re

from dandelion.privacy.cost_of_sums import WAYS, bytes_of_sealed_round, cost_of_sums


def test_all_kinds_of_round_are_timed_and_send_as_many_bytes_as_the_formula_says(
    tmp_path, monkeypatch
):  # fmt: skip
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    small = {"max-samples": 2, "zo-batch-size": 2, "queries": 2, "block-size": 16, "num-rounds": 3}
    rows = cost_of_sums(1, {**small, "num-clients": 3}, trips=[0.01])
    assert [row.name for row in rows] == [f"round, {way}" for way in WAYS]
    assert rows[0].ratio == 1.0
    assert all(row.seconds > 0.01 for row in rows)
    for row in rows:
        sent, expected = re.search(
            r"([\d,]+) bytes up a site, by the formula ([\d,]+)", row.note
        ).groups()
        assert sent == expected


def test_the_formula_gives_the_table_of_the_page():
    """docs/explanation/sealed-sums.md: boxes of a site, and a member's sum; all are members."""
    assert bytes_of_sealed_round(3, 16) == 532 + 180
