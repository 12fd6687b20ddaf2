"""Sign directions: every kernel equals the numpy reference bit for bit."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.flat import TILE, Layout
from shared.directions.kernels import compiled as threads
from shared.directions.kernels import philox_cpu, rademacher_cpu
from shared.directions.kernels import plain_torch as philox_torch
from shared.directions.kernels import plain_torch as rademacher_torch
from shared.directions.kernels.compiled import kernel
from shared.directions.rademacher import Rademacher, signs
from shared.randomness.philox import words
from shared.randomness.streams import Key

KEY = Key(seed=2**63 + 11, round=5, slot=3, index=7)
FAMILY = Rademacher(Layout(()))
KERNELS = [rademacher_cpu, rademacher_torch]


pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(key, size):
    z = torch.zeros(size)
    FAMILY.add_to_(z, [key], [1.0])
    return z


def reference(vector, start, keys, coefficients):
    """Return vector + sum of coefficients times signs, each step rounded to float32."""
    total, addresses = vector.numpy().copy(), np.arange(start, start + vector.numel())
    for key, coefficient in zip(keys, coefficients, strict=True):
        total += np.float32(coefficient) * signs(key, addresses)
    return total


@pytest.mark.parametrize("fast", [philox_cpu, philox_torch])
def test_fast_words_equal_the_reference(fast):
    blocks = torch.cat([torch.arange(1000), torch.tensor([2**31, 2**32 - 1])])
    for key in (KEY, Key(0, 0, 0, 0), Key(2**64 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1)):
        assert np.array_equal(fast.words(key, blocks).numpy().T, words(key, blocks.numpy()))


def test_an_element_takes_the_bit_that_the_layout_says():
    tile, z = 3, signs(KEY, np.arange(3 * TILE, 4 * TILE))
    drawn_words = words(KEY, range(tile * 16, tile * 16 + 16))
    for e in range(TILE):
        bit = int(drawn_words[e % 16, e % 64 // 16]) >> (e // 64) & 1
        assert z[e] == (-1 if bit else 1)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("kernels", KERNELS)
@settings(max_examples=40, deadline=None)
@given(
    start=st.integers(0, 3 * TILE) | st.integers(2**32 - TILE, 2**39 - 5 * TILE),
    size=st.integers(0, 4 * TILE + 3) | st.just(2 * TILE),
    coefficients=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4),
)
def test_kernels_equal_the_reference(kernels, number, start, size, coefficients):
    torch.set_num_threads(number)
    vector = torch.linspace(-2, 2, size)
    keys = [replace(KEY, index=k) for k in range(len(coefficients))]
    expected = reference(vector, start, keys, coefficients)
    alone, out = reference(vector, start, keys[:1], coefficients[:1]), torch.full((size,), 9.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "PARALLEL_FROM", 1)
        kernels.perturb_(out, vector, start, keys[0], coefficients[0])
        kernels.add_to_(vector, keys, coefficients, start)
    assert np.array_equal(vector.numpy(), expected)
    assert np.array_equal(out.numpy(), alone)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("width", [1, 63, 64, 300, TILE, 2 * TILE + 1])
def test_rows_equal_the_reference(kernels, width):
    start, ids = 3 * TILE, torch.tensor([5, 0, 5, 31, 12])
    rows = torch.linspace(-1, 1, 5 * width).view(5, width)
    addresses = start + ids[:, None].numpy() * width + np.arange(width)
    z = signs(KEY, addresses.ravel()).reshape(5, width)
    expected = rows.numpy() + np.float32(0.3) * z
    kernels.add_rows_(rows, ids, start, KEY, 0.3)
    assert np.array_equal(rows.numpy(), expected)


@pytest.mark.parametrize("size", [1 << 17, (1 << 17) + 777])
def test_many_fused_keys_have_the_same_bits_at_any_thread_count(size):
    keys, vector = [replace(KEY, index=k) for k in range(16)], torch.linspace(-1, 1, size)
    coefficients = [0.1 * (k + 1) for k in range(16)]
    expected = reference(vector, 100, keys, coefficients)
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        ours = vector.clone()
        rademacher_cpu.add_to_(ours, keys, coefficients, 100)
        assert np.array_equal(ours.numpy(), expected)


def test_python_threads_may_add_at_the_same_time():
    vectors = [torch.zeros(1 << 17) for _ in range(8)]
    torch.set_num_threads(2)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda vector: FAMILY.add_to_(vector, [KEY] * 4, [1.0] * 4), vectors))
    assert all(torch.equal(vector, 4 * drawn(KEY, 1 << 17)) for vector in vectors)


def test_one_thread_is_used_where_only_the_unsafe_layer_loads(monkeypatch):
    threads.most_threads.cache_clear()
    monkeypatch.setattr(threads.numba, "threading_layer", lambda: "workqueue")
    assert threads.most_threads() == 1
    threads.most_threads.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_loading_the_kernels_leaves_torchs_number_of_threads_alone(number):
    program = (
        "import torch; torch.set_num_threads({0}); import shared.directions.kernels.rademacher_cpu;"
        "assert torch.get_num_threads() == {0}, torch.get_num_threads()"
    )
    subprocess.run([sys.executable, "-c", program.format(number)], check=True)


def test_a_kernel_compiles_where_it_cannot_be_cached():
    namespace = {}
    exec("def double(x):\n    return 2 * x", namespace)  # without a file there is no cache for it
    assert kernel("int64(int64)")(namespace["double"])(21) == 42


@pytest.mark.parametrize("tensor", [torch.zeros(8, dtype=torch.float64), torch.zeros(16)[::2]])
def test_what_the_kernels_cannot_read_is_refused(tensor):
    with pytest.raises(ValueError, match="contiguous float32"):
        FAMILY.add_to_(tensor, [KEY], [1.0])


def test_signs_are_fair_and_unrelated_between_keys_and_neighbours():
    size = 1 << 20
    z = drawn(KEY, size)
    other = drawn(replace(KEY, index=8), size)
    assert torch.equal(z.abs(), torch.ones(size))
    bound = 5 * size**-0.5  # five standard deviations
    assert abs(z.mean()) < bound
    assert abs((z * other).mean()) < bound
    for lag in (1, 16, 64, TILE):
        assert abs((z[lag:] * z[:-lag]).mean()) < bound
