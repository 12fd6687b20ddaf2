"""Orthogonalising is integer arithmetic in disguise, close to Muon's and blind to order."""

import math

import numpy as np
import pytest
import torch
from optimizer_trials import threads  # noqa: F401  (a fixture)

from shared.optimizers import newton_schulz as ns


def gaussian(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def in_integers(matrix):
    """Newton-Schulz with its products in int64 (units of 2^-50), nothing shared but the grid."""

    def exact(left, right):
        units_l, units_r = (np.rint(f * 2.0**25).astype(np.int64) for f in (left, right))
        assert (np.abs(units_l) @ np.abs(units_r)).max() < 2**53
        return (units_l @ units_r) * 2.0**-50

    def rounded(x):
        return np.rint(x * 2.0**25) * 2.0**-25

    x = rounded(matrix.numpy().astype(np.float64) * (1 / ns.frobenius(matrix)))
    for _ in range(5):
        gram = rounded(exact(x, x.T))
        curve = rounded(gram * -4.7750 + exact(gram, gram) * 2.0315)
        x = rounded(exact(curve, x) + x * 3.4445)
    return torch.from_numpy(x.astype(np.float32))


@pytest.mark.parametrize("shape", [(64, 64), (40, 700), (1, 9), (3, 2000)])
def test_orthogonalising_in_float64_equals_integer_arithmetic(shape):
    assert torch.equal(ns.orthogonalise(gaussian(*shape)), in_integers(gaussian(*shape)))


@pytest.mark.parametrize("spikes", [0, 1, 40], ids=["rank one", "one spike", "forty spikes"])
def test_extreme_spectra_stay_within_the_exact_range(spikes):
    matrix = torch.outer(gaussian(50), gaussian(60)) if not spikes else gaussian(50, 60) * 1e-6
    matrix[range(spikes), range(spikes)] += 1.0
    assert torch.equal(ns.orthogonalise(matrix), in_integers(matrix))


@pytest.mark.parametrize("shape", [(200, 333), (333, 200), (128, 128)])
def test_orthogonalising_is_the_same_in_any_order_of_summing(shape, threads):
    matrix = gaussian(*shape)
    straight = ns.orthogonalise(matrix)
    rows, columns = (torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in shape)
    permuted = ns.orthogonalise(matrix[rows][:, columns])
    assert torch.equal(permuted, straight[rows][:, columns])
    if shape[0] != shape[1]:  # a square one is taken from its own side
        assert torch.equal(ns.orthogonalise(matrix.T), straight.T)
    threads(2)
    assert torch.equal(ns.orthogonalise(matrix), straight)


@pytest.mark.parametrize("shape", [(200, 64), (64, 200), (96, 1000)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape):
    matrix = gaussian(*shape)
    result = ns.orthogonalise(matrix).double()
    values = torch.linalg.svdvals(result)
    assert 0.65 < values.min() <= values.max() < 1.21
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    middle = left.T @ result @ right.T
    assert (middle - torch.diag(middle.diagonal())).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(64, 200), (300, 300), (16, 5000)])
def test_the_grid_costs_little_accuracy(shape):
    matrix = gaussian(*shape)
    result, x = ns.orthogonalise(matrix), matrix.double() / ns.frobenius(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    assert (result - x).norm() < 1e-4 * x.norm()


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1.0, 1e38])
def test_the_norm_is_never_below_the_true_one(scale):
    matrix = gaussian(70, 50) * scale
    true = float(matrix.double().norm())
    peak = float(matrix.abs().max())
    assert true <= ns.frobenius(matrix) <= true + math.sqrt(70 * 50) * 2.0**-15 * peak


def test_orthogonalising_a_power_of_two_times_a_matrix_is_the_same():
    assert torch.equal(ns.orthogonalise(gaussian(9, 7) / 1024), ns.orthogonalise(gaussian(9, 7)))


def test_zeros_stay_zero_and_nan_stays_visible():
    assert not ns.orthogonalise(torch.zeros(4, 6)).any()
    broken = gaussian(4, 6)
    broken[1, 2] = math.inf
    assert ns.orthogonalise(broken).isnan().sum() == 1
