"""A gradient adds itself, scaled, to a vector; nothing else is needed to step."""

import numpy as np
import pytest
import torch

from shared.base.flat import Layout
from shared.directions import DIRECTIONS
from shared.optimizers import gradient
from shared.optimizers.gradient import (
    DenseGradient,
    ZerothOrderGradient,
    add_scaled_,
    coefficients_of,
    differences_of,
)
from shared.randomness.streams import Key

LAYOUT = Layout.of([("w", (50, 61)), ("b", (61,))])
KEYS = [Key(1, 2, 0, index) for index in range(3)]


@pytest.fixture
def flat():
    return torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def vector():
    return torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(2))


def test_a_dense_gradient_adds_scale_times_itself(flat, vector):
    expected = flat + torch.from_numpy(vector.numpy() * np.float32(0.3))
    DenseGradient(vector).add_to_(flat, 0.3)
    assert torch.equal(flat, expected)


def test_a_dense_gradient_stays_as_it_is(flat, vector):
    kept = vector.clone()
    DenseGradient(vector).add_to_(flat, 2.0)
    assert torch.equal(vector, kept)


@pytest.mark.parametrize("chunk", [1, 7, 2048, 1 << 20])
def test_chunks_change_no_bit(flat, vector, chunk, monkeypatch):
    whole, parts = flat.clone()[:3000], flat.clone()[:3000]
    add_scaled_(whole, vector[:3000], -0.1)
    monkeypatch.setattr(gradient, "CHUNK", chunk)
    add_scaled_(parts, vector[:3000], -0.1)
    assert torch.equal(whole, parts)


def test_product_and_sum_are_rounded_apart():
    """A fused multiply-add would give another last bit, and devices would differ."""
    target = torch.full((4096,), -1.0)
    add_scaled_(target, torch.full((4096,), 1 + 2.0**-12), 1 + 2.0**-12)
    assert torch.equal(target, torch.full((4096,), 2.0**-11))  # fused: plus 2**-24


def test_a_vector_can_be_added_to_itself(flat):
    expected = flat + flat * np.float32(-0.01)
    add_scaled_(flat, flat, -0.01)
    assert torch.equal(flat, expected)


@pytest.mark.parametrize("name", DIRECTIONS.names())
def test_an_estimate_is_the_sum_of_its_directions(name, flat):
    directions, numbers = DIRECTIONS[name](LAYOUT), [0.5, -2.0, 0.25]
    expected = flat.clone()
    for key, number in zip(KEYS, numbers, strict=True):
        directions.add_to_(expected, [key], [-0.5 * number])
    ZerothOrderGradient(directions, KEYS, numbers).add_to_(flat, -0.5)
    assert torch.equal(flat, expected)


def test_an_estimate_along_nothing_adds_nothing(flat):
    kept = flat.clone()
    ZerothOrderGradient(DIRECTIONS["rademacher"](LAYOUT), [], []).add_to_(flat, 1.0)
    assert torch.equal(flat, kept)


def test_both_kinds_agree_where_they_say_the_same(flat):
    directions = DIRECTIONS["rademacher"](LAYOUT)
    z = torch.zeros(LAYOUT.size)
    directions.add_to_(z, KEYS[:1], [1.0])
    dense, scalar = flat.clone(), flat.clone()
    DenseGradient(z).add_to_(dense, -0.37)
    ZerothOrderGradient(directions, KEYS[:1], [1.0]).add_to_(scalar, -0.37)
    assert torch.equal(dense, scalar)


def test_a_coefficient_is_the_slope_along_a_direction_shared_among_the_queries():
    differences = np.array([0.3, -1.7, 0.0])
    coefficients = coefficients_of(differences, 1e-3, 3)
    assert coefficients.tolist() == [d / (2 * 1e-3 * 3) for d in differences.tolist()]
    assert coefficients_of(0.3, 1e-3, 3) == coefficients[0]
    assert np.allclose(differences_of(coefficients, 1e-3, 3), differences, rtol=1e-15)
