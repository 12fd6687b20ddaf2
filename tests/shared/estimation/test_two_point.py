"""The two-point estimate: exact on a quadratic, unbiased, and it leaves the parameters alone."""

import numpy as np
import torch
from torch import nn

from shared.base.flat import flatten
from shared.directions import DIRECTIONS
from shared.estimation.perturber import Perturber
from shared.estimation.two_point import two_point
from shared.optimizers.gradient import ZerothOrderGradient
from shared.randomness.streams import Key

EPS = 0.25  # a power of two: perturbed parameters below are exact
KEYS = [Key(3, 1, 0, index) for index in range(8)]


def quadratic():
    """½‖x‖² + b·x over integers, whose gradient is x + b."""
    x = torch.arange(-20, 20, dtype=torch.float32)
    b = torch.arange(40, dtype=torch.float32) % 7
    model = flatten(nn.ParameterDict({"x": x}))

    def loss(query=0):
        y = model.module["x"].detach().double()
        return float(0.5 * (y * y).sum() + (b * y).sum())

    return model, loss, (x + b).double()


def estimate(model, loss, keys):
    directions = DIRECTIONS["rademacher"](model.layout)
    return two_point(loss, Perturber(model, directions), keys, EPS), directions


def test_the_differences_on_a_quadratic_are_those_of_autograd_exactly():
    model, loss, gradient = quadratic()
    differences, directions = estimate(model, loss, KEYS)
    for key, difference in zip(KEYS, differences, strict=True):
        z = torch.zeros(model.layout.size)
        directions.add_to_(z, [key], [1.0])
        assert difference == float(2 * EPS * (z[:40].double() * gradient).sum())


def test_measuring_leaves_the_parameters_alone():
    model, loss, _ = quadratic()
    before = model.flat.clone()
    estimate(model, loss, KEYS)
    assert torch.equal(model.flat, before)


def test_a_query_costs_two_evaluations_and_says_which_it_is():
    model, loss, _ = quadratic()
    queries = []
    estimate(model, lambda query: queries.append(query) or loss(), KEYS[:3])
    assert queries == [0, 0, 1, 1, 2, 2]


def test_the_mean_over_many_directions_is_the_gradient():
    model, loss, gradient = quadratic()
    keys = [Key(5, 1, 0, index) for index in range(4000)]
    differences, directions = estimate(model, loss, keys)
    coefficients = differences.astype(np.float64) / (2 * EPS) / len(keys)
    mean = torch.zeros(model.layout.size)
    ZerothOrderGradient(directions, keys, coefficients.tolist()).add_to_(mean, 1.0)
    error = (mean[:40].double() - gradient).norm() / gradient.norm()
    assert error < 3 * (40 / len(keys)) ** 0.5  # √(d/q) is expected


def test_a_loss_that_is_not_finite_comes_back_as_it_is():
    model, _, _ = quadratic()
    values = iter([float("nan"), 1.0, float("inf"), 1.0])
    differences, _ = estimate(model, lambda query: next(values), KEYS[:2])
    assert np.isnan(differences[0])
    assert np.isinf(differences[1])
