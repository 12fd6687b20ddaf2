"""SGD and Adam are torch's, and every operation is rounded as IEEE 754 says."""

import math

import numpy as np
import pytest
import torch
from optimizer_trials import LAYOUT, random_vector, threads  # noqa: F401  (a fixture)

from shared.optimizers import OPTIMIZERS
from shared.optimizers.adam import power, square_root
from shared.optimizers.gradient import DenseGradient


@pytest.mark.parametrize(
    ("name", "hyper", "reference"),
    [
        ("sgd", {}, torch.optim.SGD),
        ("sgd", {"momentum": 0.9}, torch.optim.SGD),
        ("sgd", {"weight_decay": 0.05}, torch.optim.SGD),
        ("sgd", {"momentum": 0.9, "weight_decay": 0.05}, torch.optim.SGD),
        ("adam", {}, torch.optim.Adam),
        ("adam", {"beta1": 0.8, "beta2": 0.99, "epsilon": 1e-6}, torch.optim.Adam),
        ("adam", {"weight_decay": 0.05}, torch.optim.AdamW),
    ],
)
def test_torch_takes_the_same_steps(name, hyper, reference):
    ours = OPTIMIZERS[name](LAYOUT, **hyper)
    flat = random_vector(0) / 8
    tensors = [view.double().requires_grad_() for view in LAYOUT.views(flat).values()]
    options = {key: value for key, value in hyper.items() if key in ("momentum", "weight_decay")}
    if name == "adam":
        options["betas"] = (hyper.get("beta1", 0.9), hyper.get("beta2", 0.999))
        options["eps"] = hyper.get("epsilon", 1e-8)
        options.setdefault("weight_decay", 0.0)  # torch's AdamW decays by default
    theirs = reference(tensors, lr=1e-3, **options)
    for round_ in range(100):
        gradient = random_vector(100 + round_)
        ours.step_(flat, DenseGradient(gradient), 1e-3)
        for tensor, view in zip(tensors, LAYOUT.views(gradient).values(), strict=True):
            tensor.grad = view.double()
        theirs.step()
    for tensor, view in zip(tensors, LAYOUT.views(flat).values(), strict=True):
        torch.testing.assert_close(view, tensor.detach().float(), rtol=0, atol=1e-6)


def test_adam_is_its_formula_with_every_operation_rounded_to_float32():
    optimizer, flat = OPTIMIZERS["adam"](LAYOUT, weight_decay=0.1), random_vector(0)
    theta, single = flat.numpy().copy(), np.float32
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    for step in range(1, 6):
        optimizer.step_(flat, DenseGradient(random_vector(step)), 3e-3)
        g = random_vector(step).numpy()
        first = first * single(0.9) + g * single(1 - 0.9)
        second = second * single(0.999) + g * g * single(1 - 0.999)
        root = np.sqrt(second) * single(1 / math.sqrt(1 - power(0.999, step))) + single(1e-8)
        theta = theta + theta * single(-3e-3 * 0.1)
        theta = theta - first * single(1 / (1 - power(0.9, step))) / root * single(3e-3)
    assert np.array_equal(flat.numpy(), theta)


def test_square_roots_are_correctly_rounded():
    words = torch.arange(1, 0x7F800000, 1999, dtype=torch.int32)
    numbers = torch.cat([torch.zeros(1), words.view(torch.float32)])  # of every exponent
    assert np.array_equal(square_root(numbers).numpy(), np.sqrt(numbers.numpy()))


@pytest.mark.parametrize("base", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("exponent", [0, 1, 2, 7, 1000, 123_456])
def test_powers_by_squaring_are_powers(base, exponent):
    assert power(base, exponent) == pytest.approx(base**exponent, rel=1e-10, abs=1e-300)
