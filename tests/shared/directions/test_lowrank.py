"""Low-rank directions: every kernel equals the numpy reference bit for bit."""

from dataclasses import replace
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.errors import ConfigError
from shared.base.flat import TILE, Layout
from shared.directions import lowrank as module
from shared.directions.kernels import compiled as threads
from shared.directions.kernels import lowrank_cpu
from shared.directions.kernels import plain_torch as lowrank_torch
from shared.directions.lowrank import Lowrank, factors_of, reference
from shared.randomness.streams import Key
from shared.training.validate import configure

KEY = Key(seed=2**63 + 11, round=5, slot=3, index=7)
KNOWN_FIRST = [1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0, -1.0]
KNOWN_DIGEST = "1b86c1f77c7760d5"
LAYOUT = Layout.of([("m", (48, 100)), ("bias", (70,)), ("odd", (33, 65)), ("cube", (3, 4, 5))])


pytestmark = pytest.mark.usefixtures("one_thread")


def expected(vector, rank, keys, coefficients, layout=LAYOUT):
    """vector + sum of coefficients times z, each term rounded alone."""
    total = vector.numpy().copy()
    for key, coefficient in zip(keys, coefficients, strict=True):
        for factors in factors_of(layout, rank):
            for term in reference(factors, rank, key, coefficient):
                total[factors.span.start : factors.span.stop] += term
    return total


@pytest.mark.parametrize("kernels", [lowrank_cpu, lowrank_torch])
@settings(max_examples=30, deadline=None)
@given(
    rank=st.integers(1, 3),
    number=st.integers(1, 2),
    low=st.integers(0, LAYOUT.size - 1),
    size=st.integers(0, LAYOUT.size),
    coefficients=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4),
)
def test_kernels_equal_the_reference(kernels, rank, number, low, size, coefficients):
    keys = [replace(KEY, index=k) for k in range(len(coefficients))]
    family, vector = Lowrank(LAYOUT, rank), torch.linspace(-2, 2, LAYOUT.size)
    high = min(low + size, LAYOUT.size)
    together, alone = expected(vector, rank, keys, coefficients), vector.clone()
    torch.set_num_threads(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "PARALLEL_FROM", 1)
        patch.setattr(module, "_products_for", lambda tensor: kernels)
        patch.setattr(lowrank_torch, "PRODUCTS", 300)
        patch.setattr(module, "FUSED_SIGNS", 500)  # so that keys take several passes
        family.perturb_(alone[low:high], vector[low:high], low, keys[0], coefficients[0])
        family.add_to_(vector[low:high], keys, coefficients, low)
    assert np.array_equal(vector[low:high].numpy(), together[low:high])
    first = expected(torch.linspace(-2, 2, LAYOUT.size), rank, keys[:1], coefficients[:1])
    assert np.array_equal(alone[low:high].numpy(), first[low:high])


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_matrix_is_a_product_of_signs_over_the_root_of_the_rank(rank):
    family, z = Lowrank(LAYOUT, rank), torch.zeros(LAYOUT.size)
    family.add_to_(z, [KEY], [1.0])
    matrix = LAYOUT.views(z)["m"]
    assert torch.linalg.matrix_rank(matrix) == rank
    a, b = family.factors([KEY, replace(KEY, index=8)], LAYOUT.tensors[0].start, z.device)
    assert a.shape == (2, rank, 48)
    assert b.shape == (2, rank, 100)
    assert torch.equal(a.abs(), torch.ones_like(a))
    assert torch.equal(b.abs(), torch.ones_like(b))
    torch.testing.assert_close(a[0].T @ b[0] / rank**0.5, matrix)
    assert torch.equal(family.signs([KEY], LAYOUT.tensors[1].start, z.device)[0],
                       LAYOUT.views(z)["bias"])  # fmt: skip


def test_directions_of_any_rank_have_variance_one():
    for rank in (2, 3):
        family = Lowrank(LAYOUT, rank)
        z = torch.zeros(200, LAYOUT.size)
        for k in range(200):
            family.add_to_(z[k], [replace(KEY, index=k)], [1.0])
        squares = z[:, : LAYOUT.tensors[0].size].square()
        assert abs(squares.mean() - 1) < 0.02
        assert z[:, : LAYOUT.tensors[0].size].mean(0).abs().max() < 6 * 200**-0.5


def test_no_two_tensors_share_signs():
    for rank in (1, 3):
        tensors = factors_of(LAYOUT, rank)
        ranges = []
        for f in tensors:
            m, n = f.span.shape if f.is_matrix else (f.span.size, 0)
            ranges += [(f.rows, f.rows + rank * m if n else f.rows + m)]
            ranges += [(f.columns, f.columns + rank * n)] if n else []
        assert all(low % TILE == 0 for low, _ in ranges)
        assert all(a[1] <= b[0] for a, b in pairwise(ranges))


def test_the_numbers_are_those_that_they_always_were():
    """A ledger of years ago must replay: the family's numbers may never change."""
    z = torch.zeros(LAYOUT.size)
    Lowrank(LAYOUT).add_to_(z, [Key(1, 2, 3, 4)], [1.0])
    assert z[:8].tolist() == KNOWN_FIRST
    assert sha256(z.numpy().tobytes()).hexdigest()[:16] == KNOWN_DIGEST


def test_a_rank_of_none_is_refused():
    with pytest.raises(ConfigError, match="direction-rank"):
        configure({"direction-rank": 0})
    with pytest.raises(ConfigError, match="direction-rank"):
        Lowrank(LAYOUT, 0)


def test_what_it_cannot_read_is_refused():
    with pytest.raises(ValueError, match="contiguous float32"):
        Lowrank(LAYOUT).add_to_(torch.zeros(8).double(), [KEY], [1.0])
