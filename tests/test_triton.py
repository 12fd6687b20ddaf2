"""The CUDA kernels equal the numpy reference bit for bit, run by Triton's interpreter."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is installed with the dev extra")

from shared.directions import Key, lowrank
from shared.directions.kernels import lowrank_triton, rademacher_triton
from shared.directions.lowrank import Lowrank, factors_of, reference
from shared.directions.rademacher import kernels_at, signs
from shared.flat import TILE, Layout

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
    rademacher_triton.perturbed_(out, vector, start, key, 0.3)
    rademacher_triton.add_to_(vector, keys, coefficients, start)
    assert np.array_equal(out.numpy(), alone)
    assert np.array_equal(vector.numpy(), expected)


@pytest.mark.parametrize("width", [1, 63, 300, 2 * TILE + 1])
def test_rows_equal_the_reference(width):
    start, ids = 3 * TILE, torch.tensor([5, 0, 5, 31, 12])
    rows = torch.linspace(-1, 1, 5 * width).view(5, width)
    addresses = start + ids[:, None].numpy() * width + np.arange(width)
    z = signs(KEY, addresses.ravel()).reshape(5, width)
    expected = rows.numpy() + np.float32(0.3) * z
    rademacher_triton.add_rows_(rows, ids, start, KEY, 0.3)
    assert np.array_equal(rows.numpy(), expected)


def test_each_row_may_have_a_key_of_its_own():
    keys, rows = [replace(KEY, index=k) for k in range(4)], torch.zeros(4, 3000)
    rademacher_triton.add_each_(rows, keys, 70)
    for row, key in zip(rows, keys, strict=True):
        assert np.array_equal(row.numpy(), signs(key, np.arange(70, 3070)))


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_products_equal_the_reference(rank, monkeypatch):
    layout = Layout.of([("m", (48, 100)), ("bias", (70,)), ("wide", (3, 700))])
    family, vector = Lowrank(layout, rank), torch.linspace(-2, 2, layout.size)
    keys, coefficients = [replace(KEY, index=k) for k in range(2)], [0.3, -7.7]
    expected = vector.numpy().copy()
    for key, coefficient in zip(keys, coefficients, strict=True):
        for found in factors_of(layout, rank):
            for term in reference(found, rank, key, coefficient):
                expected[found.place.start : found.place.stop] += term
    monkeypatch.setattr(lowrank, "_kernels_for", lambda tensor: lowrank_triton)
    for low, high in ((0, 150), (150, 4799), (4799, layout.size)):
        family.add_to_(vector[low:high], keys, coefficients, low)
    assert np.array_equal(vector.numpy(), expected)


def test_devices_get_their_own_kernels(monkeypatch):
    kernels_at.cache_clear()
    assert kernels_at("rademacher", "cuda") is rademacher_triton
    assert kernels_at("lowrank", "cuda") is lowrank_triton
    assert kernels_at("rademacher", "cpu").__name__.endswith("rademacher_cpu")
    assert kernels_at("rademacher", "mps").__name__.endswith("rademacher_torch")
    kernels_at.cache_clear()
    monkeypatch.setattr("shared.directions.rademacher.find_spec", lambda name: None)
    assert kernels_at("rademacher", "cuda").__name__.endswith("rademacher_torch")
    kernels_at.cache_clear()


COMPARED = """
import torch
from shared.directions import DIRECTIONS, Key
from shared.flat import Layout
layout = Layout.of([("m", (300, 700)), ("bias", (70,)), ("wide", (3, 7000))])
keys = [Key(2**63 + 11, 5, 3, k) for k in range(5)]
for name in ("rademacher", "lowrank"):
    family = DIRECTIONS[name](layout)
    vectors = [torch.linspace(-2, 2, layout.size).to(device) for device in ("cpu", "cuda")]
    for vector in vectors:
        family.add_to_(vector, keys, [0.3, -7.7, 1e-4, 2.0, -0.1])
        layout.clear_padding_(vector)
    assert torch.equal(vectors[0], vectors[1].cpu()), name
"""


@pytest.mark.gpu
def test_the_gpu_has_the_bits_of_the_cpu():
    compiled = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", COMPARED], env=compiled, check=True)
