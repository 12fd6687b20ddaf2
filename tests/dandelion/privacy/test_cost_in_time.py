"""The benchmarks of what privacy and a guard cost a site in time."""

import pytest

from dandelion.privacy.cost_in_time import cost_in_time
from dandelion.privacy.guard_time import cost_of_guard

SMALL = {"max-samples": 2, "zo-batch-size": 2, "queries": 2, "block-size": 16}


def test_both_kinds_of_round_are_timed_in_turns():
    plain, local = cost_in_time(2, SMALL)
    assert plain.ratio == 1.0
    assert local.seconds > 0
    assert 0 < local.ratio < 100
    assert "2 quotients" in local.note


@pytest.mark.slow
def test_a_guard_is_timed_against_a_worker_with_and_without_its_raster():
    """Three real processes; each answers rounds, or the benchmark ends with an error."""
    worker, plain, raster = cost_of_guard(2, SMALL)
    assert worker.ratio == 1.0
    assert worker.name == "round through a worker"
    assert raster.seconds > 0.05
    assert plain.seconds > 0
