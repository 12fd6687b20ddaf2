"""The benchmark of what privacy costs a site in time."""

from dandelion.privacy.cost_in_time import cost_in_time


def test_both_kinds_of_round_are_timed_in_turns():
    small = {"max-samples": 2, "zo-batch-size": 2, "queries": 2, "block-size": 16}
    plain, local = cost_in_time(2, small)
    assert plain.ratio == 1.0
    assert local.seconds > 0
    assert 0 < local.ratio < 100
    assert "2 quotients" in local.note
