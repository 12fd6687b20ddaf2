"""Directions that lean on a gradient have their cosine, and their estimate its closed form."""

import numpy as np
import pytest
import torch

from server.aggregation.variance_weights import gradient_weight
from shared.base.deterministic_sums import dot, norm
from shared.base.flat import Layout
from shared.config.schema import Config
from shared.directions.rademacher import Rademacher
from shared.estimation.guided import Masked, Tilted
from shared.randomness.streams import Key

LAYOUT = Layout.of([("a", (3, 50)), ("b", (41,))])
KEYS = [Key(7, 3, 0, index) for index in range(5)]
COSINE = 0.9


def vector(seed, length=1.0):
    normal = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(seed))
    LAYOUT.clear_padding_(normal)
    return normal * (length / normal.norm())


def tilted(guide):
    return Tilted(LAYOUT, Rademacher(LAYOUT), COSINE, guide)


def direction(guided, key):
    """u itself, in float64."""
    dense = torch.zeros(LAYOUT.size)
    rest = guided.shift_(dense, key, 1.0)
    z = torch.zeros(LAYOUT.size)
    Rademacher(LAYOUT).add_to_(z, [key], [1.0])
    LAYOUT.clear_padding_(z)
    return dense.double() + rest * z.double()


@pytest.mark.parametrize("length", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("key", KEYS)
def test_a_tilted_direction_has_length_one_and_the_cosine(key, length):
    guide = vector(1, length)
    u = direction(tilted(guide), key)
    assert float(u.norm()) == pytest.approx(1, abs=1e-6)
    assert float(u @ guide.double()) / length == pytest.approx(COSINE, abs=1e-6)


@pytest.mark.parametrize("key", KEYS)
def test_a_masked_direction_has_length_one_and_about_the_cosine(key):
    guide = vector(1, 5.0)
    u = direction(Masked(LAYOUT, COSINE, guide), key)
    assert float(u.norm()) == pytest.approx(1, abs=1e-6)
    assert float(u @ guide.double()) / 5 == pytest.approx(COSINE, abs=0.06)


@pytest.mark.parametrize("length", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_on_a_quadratic_the_blend_is_its_closed_form(weight, length):
    """L(x) = x·A·x / 2 at x has the gradient g = A·x, and along u the slope g·u, exactly."""
    scales = torch.linspace(0.1, 3, LAYOUT.size).double()
    gradient = scales * vector(2, 1.0).double()
    guide = vector(3, length)
    directions = [direction(tilted(guide), key) for key in KEYS]
    slopes = np.array([float(gradient @ u) for u in directions])
    estimate = tilted(guide).estimate(KEYS, slopes)
    ours = (1 - weight) * (
        estimate.on(guide).double() + keys_part(estimate)
    ) + weight * guide.double()
    closed = sum((gradient @ u) * u for u in directions) / (len(KEYS) * COSINE**2)
    closed = (1 - weight) * closed + weight * guide.double()
    assert float((ours - closed).norm() / closed.norm()) < 1e-6


def keys_part(estimate):
    """Σ keys[k]·z(k) in float64."""
    total = torch.zeros(LAYOUT.size, dtype=torch.float64)
    for key, scale in zip(KEYS, estimate.keys, strict=True):
        z = torch.zeros(LAYOUT.size)
        Rademacher(LAYOUT).add_to_(z, [key], [1.0])
        LAYOUT.clear_padding_(z)
        total += scale * z.double()
    return total


@pytest.mark.parametrize("kind", ["tilted", "masked"])
def test_an_estimates_length_does_not_depend_on_the_guides(kind):
    gradient, lengths = vector(2, 2.0).double(), []
    for length in (1e-8, 1.0, 1e8):
        guide = vector(2, length)
        guided = tilted(guide) if kind == "tilted" else Masked(LAYOUT, COSINE, guide)
        slopes = np.array([float(gradient @ direction(guided, key)) for key in KEYS])
        estimate = guided.estimate(KEYS, slopes)
        lengths.append(float((estimate.on(guide).double() + keys_part(estimate)).norm()))
    assert lengths == pytest.approx([lengths[0]] * 3, rel=1e-5)
    assert lengths[0] == pytest.approx(2.0, rel=0.2)


def test_a_guide_of_zeros_leaves_the_keys_own_direction():
    u = direction(tilted(torch.zeros(LAYOUT.size)), KEYS[0])
    assert float(u.norm()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 1000, (1 << 20) + 7])
def test_a_dot_product_is_right_and_has_the_same_bits_at_any_number_of_threads(size):
    a, b = torch.randn(2, size, generator=torch.Generator().manual_seed(size))
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append((dot(a, b), norm(a)))
    torch.set_num_threads(1)
    assert results[0] == results[1]
    assert results[0][0] == pytest.approx(float(a.double() @ b.double()), abs=1e-7)


def test_a_tilted_directions_numbers_have_the_same_bits_at_any_number_of_threads():
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append([tilted(vector(4)).parts(key) for key in KEYS])
    torch.set_num_threads(1)
    assert results[0] == results[1]


def test_the_weight_of_a_gradient_falls_with_the_error_that_the_slopes_show():
    config = Config.from_run_config({"bp-weight": "auto"})
    guide = vector(1, 1.0)
    right = gradient_weight(config.bp, guide, np.full(4, COSINE))
    half = gradient_weight(config.bp, guide, np.full(4, COSINE / 2))
    wrong = gradient_weight(config.bp, guide, np.zeros(4))
    assert right == 1.0
    assert right > half > wrong
    assert gradient_weight(Config(bp_weight="0.3").bp, guide, np.ones(4)) == 0.3
