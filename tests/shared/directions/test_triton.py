"""The CUDA kernels equal the numpy reference bit for bit, run by Triton's interpreter."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is installed with the dev extra")

from shared.base.flat import TILE, Layout, Matrix
from shared.directions import lowrank
from shared.directions.backends import kernels_at, products_at
from shared.directions.kernels import lowrank_triton, rademacher_products_triton, rademacher_triton
from shared.directions.kernels.rademacher_cpu import perturb_
from shared.directions.lowrank import Lowrank, factors_of, reference
from shared.directions.rademacher import signs
from shared.randomness.streams import Key

KEY = Key(seed=2**63 + 11, round=5, slot=3, index=7)
LARGE = Key(2**64 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1)


@pytest.mark.parametrize("key", [KEY, LARGE])
@pytest.mark.parametrize(
    ("start", "size"),
    [(0, TILE), (0, 9 * TILE), (3 * TILE + 100, 5000), (TILE - 1, 2), (2**39 - 5 * TILE, 3000)],
)
def test_signs_equal_the_reference(key, start, size):
    keys = [replace(key, index=key.index - k) for k in range(3)]
    coefficients = [0.3, -7.7, 1e-4]
    vector, addresses = torch.linspace(-2, 2, size), np.arange(start, start + size)
    expected = vector.numpy().copy()
    for each, coefficient in zip(keys, coefficients, strict=True):
        expected += np.float32(coefficient) * signs(each, addresses)
    alone, out = vector.numpy() + np.float32(0.3) * signs(key, addresses), torch.full((size,), 9.0)
    rademacher_triton.perturb_(out, vector, start, key, 0.3)
    rademacher_triton.add_to_(vector, keys, coefficients, start)
    assert np.array_equal(out.numpy(), alone)
    assert np.array_equal(vector.numpy(), expected)


def test_a_coefficient_of_zero_keeps_the_sign_of_a_zero():
    """Zeros are told apart where few numbers are kept on the device, too."""
    for scale in (0.0, -0.0, 0.0):
        vector = torch.full((100,), -0.0)
        expected = vector.numpy() + np.float32(scale) * signs(KEY, np.arange(100))
        rademacher_triton.add_to_(vector, [KEY], [scale], 0)
        assert vector.numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("width", [1, 63, 300, 2 * TILE + 1])
def test_rows_equal_the_reference(width):
    start, ids = 3 * TILE, torch.tensor([5, 0, 5, 31, 12])
    rows = torch.linspace(-1, 1, 5 * width).view(5, width)
    addresses = start + ids[:, None].numpy() * width + np.arange(width)
    z = signs(KEY, addresses.ravel()).reshape(5, width)
    expected = rows.numpy() + np.float32(0.3) * z
    rademacher_triton.add_rows_(rows, ids, start, KEY, 0.3)
    assert np.array_equal(rows.numpy(), expected)


@pytest.mark.parametrize("scale", [0.3, 0.01, 0.0])
def test_bfloat16_is_rounded_once_to_nearest(scale):
    start, source = 3 * TILE + 100, torch.linspace(-2, 2, 5000).bfloat16()
    z = torch.from_numpy(signs(KEY, np.arange(start, start + 5000)))
    expected, out = (source.float() + np.float32(scale) * z).bfloat16(), torch.empty_like(source)
    rademacher_triton.perturb_(out, source, start, KEY, scale)
    assert torch.equal(out, expected)
    rows = source[:100].view(1, 100).clone()
    rademacher_triton.add_rows_(rows, torch.tensor([2]), start - 200, KEY, scale)
    assert torch.equal(rows[0], expected[:100])


def test_launches_read_key_and_scale_of_the_active_slot():
    slot, source = rademacher_triton.DeviceSlot(torch.device("cpu")), torch.linspace(-2, 2, 3000)
    expected, out = torch.empty_like(source), torch.empty_like(source)
    rademacher_triton.perturb_(expected, source, 70, KEY, -0.3)
    with slot.active(KEY, -0.3):
        rademacher_triton.perturb_(out, source, 70, LARGE, 5.0)
    assert torch.equal(out, expected)
    rademacher_triton.perturb_(out, source, 70, LARGE, 5.0)
    assert not torch.equal(out, expected)


def test_a_slot_is_active_in_its_own_thread_alone():
    slots = [rademacher_triton.DeviceSlot(torch.device("cpu")) for _ in range(2)]
    inside, seen = threading.Barrier(2, timeout=60), {}

    def use(number):
        with slots[number].active(KEY, float(number)):
            inside.wait()  # both are active now
            seen[number] = rademacher_triton.DeviceSlot.current()
            inside.wait()

    threads = [threading.Thread(target=use, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [seen[number] is slots[number] for number in range(2)] == [True, True]
    assert rademacher_triton.DeviceSlot.current() is None


def test_rows_with_keys_of_their_own_are_drawn_whatever_the_slot_holds():
    slot, rows = rademacher_triton.DeviceSlot(torch.device("cpu")), torch.zeros(1, 3000)
    with slot.active(LARGE, -0.3):
        rademacher_triton.add_each_(rows, [KEY], 70)
    assert np.array_equal(rows[0].numpy(), signs(KEY, np.arange(70, 3070)))


def test_each_row_may_have_a_key_of_its_own():
    keys, rows = [replace(KEY, index=k) for k in range(4)], torch.zeros(4, 3000)
    rademacher_triton.add_each_(rows, keys, 70)
    for row, key in zip(rows, keys, strict=True):
        assert np.array_equal(row.numpy(), signs(key, np.arange(70, 3070)))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("shape", "start"), [((64, 64), 0), ((200, 70), 5 * TILE + 100), ((33, 700), 2**39 - 3 * TILE)]
)
def test_the_unit_matrix_times_a_matrix_gives_its_perturbed_numbers(shape, start, transposed):
    values = torch.linspace(-2, 2, shape[0] * shape[1])
    matrix, expected = Matrix(values, start, shape, transposed), torch.empty_like(values)
    perturb_(expected, values, start, KEY, 0.3)
    right = expected.view(shape).t() if transposed else expected.view(shape)
    for rows in torch.eye(len(right)).split(rademacher_products_triton.MOST_ROWS):
        out = rademacher_products_triton.product(rows, matrix, None, KEY, 0.3, values)
        assert torch.equal(out, rows @ right)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [1, 17, 64])
def test_products_are_those_of_torch_to_rounding(rows, transposed):
    values = torch.linspace(-2, 2, 130 * 300)
    matrix, expected = Matrix(values, 700, (130, 300), transposed), torch.empty_like(values)
    perturb_(expected, values, 700, LARGE, 1e-2)
    right = expected.view(130, 300).t() if transposed else expected.view(130, 300)
    x, bias = torch.randn(len(right), rows).t(), torch.randn(right.shape[1])
    assert rademacher_products_triton.fits(x, matrix, values)
    out = rademacher_products_triton.product(x, matrix, bias, LARGE, 1e-2, values)
    assert torch.allclose(out, bias + x @ right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_products_equal_the_reference(rank, monkeypatch):
    layout = Layout.of([("m", (48, 100)), ("bias", (70,)), ("wide", (3, 700))])
    family, vector = Lowrank(layout, rank), torch.linspace(-2, 2, layout.size)
    keys, coefficients = [replace(KEY, index=k) for k in range(2)], [0.3, -7.7]
    expected = vector.numpy().copy()
    for key, coefficient in zip(keys, coefficients, strict=True):
        for factors in factors_of(layout, rank):
            for term in reference(factors, rank, key, coefficient):
                expected[factors.span.start : factors.span.stop] += term
    monkeypatch.setattr(lowrank, "_products_for", lambda tensor: lowrank_triton)
    for low, high in ((0, 150), (150, 4799), (4799, layout.size)):
        family.add_to_(vector[low:high], keys, coefficients, low)
    assert np.array_equal(vector.numpy(), expected)


def test_devices_get_their_own_kernels(monkeypatch):
    kernels_at.cache_clear()
    assert kernels_at("rademacher", "cuda") is rademacher_triton
    assert kernels_at("lowrank", "cuda") is lowrank_triton
    assert kernels_at("rademacher", "cpu").__name__.endswith("rademacher_cpu")
    assert kernels_at("rademacher", "mps").__name__.endswith("plain_torch")
    assert products_at("cuda") is rademacher_products_triton
    assert products_at("mps") is None
    kernels_at.cache_clear()
    products_at.cache_clear()
    monkeypatch.setattr("shared.directions.backends.find_spec", lambda name: None)
    assert kernels_at("rademacher", "cuda").__name__.endswith("plain_torch")
    assert products_at("cuda") is None
    kernels_at.cache_clear()
    products_at.cache_clear()


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from shared.directions.kernels import lowrank_triton as low
from shared.directions.kernels import rademacher_products_triton as products
from shared.directions.kernels import rademacher_triton as signs

POINTERS = {
    **dict.fromkeys(("out", "source", "x", "weight", "scales", "a", "b"), "*fp32"),
    **dict.fromkeys(("starts", "keys", "key"), "*i64"), "words": "*i32",
}
KERNELS = [
    *((signs._add, dict(tiles=signs.TILES, low=low, whole=whole),
       {"out": "*i16", "source": "*i16"} if low else {})
      for low in (False, True) for whole in (False, True)),
    (low._add, dict(rows=low.ROWS, cols=low.COLUMNS), {}),
    (products._words, dict(tiles=products.TILES), {"out": "*i32"}),
    *((products._product, dict(rows=r, inner=products.INNER, outer=products.OUTER), {})
      for r in (16, products.MOST_ROWS)),
]
for kernel, constants, other in KERNELS:
    types = {**POINTERS, **dict.fromkeys(constants, "constexpr"), **other}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    for card in (80, 90):
        source = ASTSource(kernel, signature, constants)
        done = triton.compile(source, GPUTarget("cuda", card, 32), {"num_warps": products.WARPS})
        assert len(done.asm["cubin"]) > 1000
"""


@pytest.mark.slow
def test_the_kernels_compile_for_cards_that_are_not_here(tmp_path):
    compiled = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", COMPILED], env=compiled, check=True, timeout=300)


COMPARED = """
import torch
from shared.base.flat import Layout, Matrix
from shared.directions import DIRECTIONS
from shared.randomness.streams import Key
layout = Layout.of([("m", (300, 700)), ("bias", (70,)), ("wide", (3, 7000))])
keys = [Key(2**63 + 11, 5, 3, k) for k in range(5)]
for name in ("rademacher", "lowrank"):
    family = DIRECTIONS[name](layout)
    vectors = [torch.linspace(-2, 2, layout.size).to(device) for device in ("cpu", "cuda")]
    for vector in vectors:
        family.add_to_(vector, keys, [0.3, -7.7, 1e-4, 2.0, -0.1])
        layout.clear_padding_(vector)
    assert torch.equal(vectors[0], vectors[1].cpu()), name
family, x = DIRECTIONS["rademacher"](layout), torch.randn(8, 700)
for device in ("cpu", "cuda"):
    values = torch.linspace(-2, 2, 300 * 700).to(device)
    expected = torch.empty_like(values)
    family.perturb_(expected, values, 0, keys[0], 0.3)
    out = family.product(
        x.to(device), Matrix(values, 0, (300, 700), True), None, keys[0], 0.3, values
    )
    if out is not None:
        right = expected.double().view(300, 700).t()
        assert torch.allclose(out.double(), x.to(device).double() @ right, atol=1e-3), device
"""


@pytest.mark.gpu
def test_the_gpu_has_the_bits_of_the_cpu():
    compiled = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", COMPARED], env=compiled, check=True)
