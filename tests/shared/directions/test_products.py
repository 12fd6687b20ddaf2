"""Products with a perturbed matrix: its exact numbers, whatever the rows and the threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.flat import TILE, Layout, Matrix
from shared.directions import DIRECTIONS, Matrix
from shared.estimation.perturber import THREAD_SCRATCH
from shared.randomness.streams import Key

KEY, SCALE, START = Key(7, 3, 0, 1), 0.05, 5 * TILE


@pytest.fixture(scope="module")
def family():
    return DIRECTIONS["rademacher"](Layout(()))


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def matrix(height, width, transposed):
    values = torch.randn(height * width, generator=torch.Generator().manual_seed(height + width))
    return Matrix(values, START, (height, width), transposed)


def factor(family, m):
    """The right factor (k, n) as the family perturbs it element by element."""
    out = torch.empty_like(m.values)
    family.perturb_(out, m.values, m.start, KEY, SCALE)
    return out.view(m.shape).t() if m.transposed else out.view(m.shape)


def product(family, x, m, bias=None, threads=2):
    torch.set_num_threads(threads)
    out = family.product(x, m, bias, KEY, SCALE, torch.empty(2 * THREAD_SCRATCH))
    if out is None:
        pytest.skip("no vector registers for the product on this processor")
    return out


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(64, 64), (320, 192), (1000, 576), (8, 1088)])
def test_the_unit_matrix_times_a_matrix_gives_its_perturbed_numbers(family, shape, transposed):
    if transposed and shape[0] < 32:
        shape = shape[::-1]
        shape = (shape[0], 64)
    m = matrix(*shape, transposed)
    right = factor(family, m)
    assert torch.equal(product(family, torch.eye(len(right)), m), right)


@given(
    rows=st.integers(1, 40),
    height=st.integers(4, 70),
    chunks=st.integers(1, 9),
    transposed=st.booleans(),
    biased=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_products_are_those_of_torch_to_rounding(family, rows, height, chunks, transposed, biased):
    m = matrix(8 * height, 64 * chunks, transposed)
    right = factor(family, m)
    x = torch.randn(rows, len(right))
    bias = torch.randn(right.shape[1]) if biased else None
    out = product(family, x, m, bias)
    expected = x.double() @ right.double() + (0 if bias is None else bias.double())
    assert torch.allclose(out.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_bits_depend_on_neither_rows_nor_threads(family, transposed):
    m = matrix(520, 704, transposed)
    x = torch.randn(37, len(factor(family, m)))
    whole = product(family, x, m, threads=2)
    assert torch.equal(product(family, x, m, threads=1), whole)
    assert torch.equal(product(family, x[11:20], m), whole[11:20])


def test_strided_activations_and_a_shape_without_a_kernel(family):
    m = matrix(64, 128, transposed=True)
    x = torch.randn(128, 24).t()
    assert torch.equal(product(family, x, m), product(family, x.contiguous(), m))
    assert family.product(torch.randn(4, 66), matrix(64, 66, True), None, KEY, SCALE,
                          torch.empty(2 * THREAD_SCRATCH)) is None  # fmt: skip
    assert family.product(x.double(), m, None, KEY, SCALE, torch.empty(2 * THREAD_SCRATCH)) is None
