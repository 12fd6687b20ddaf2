"""Orthogonal sign directions: equal to their definition, a tight frame, and exact at q = D."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from federation import config, federate, ledger_of, replayed, resumed
from own_problem import SETTINGS, write_problem
from torch.nn.functional import cross_entropy

from shared.base.flat import TILE, Layout
from shared.config.schema import Config
from shared.directions import DIRECTIONS, hadamard
from shared.directions.low_precision import LowPrecision
from shared.directions.rademacher import signs
from shared.estimation.exact import exact_differences
from shared.estimation.forward_differences import centre
from shared.problem.load import load_problem
from shared.randomness.streams import Key, direction_keys, probe_keys, round_signs_key

KEY = Key(seed=2**63 + 11, round=5, slot=3, index=7)
LAYOUT = Layout.of([("weight", (10, 7)), ("bias", (10,)), ("wide", (3, 700))])
SMALL = Layout.of([("weight", (4, 5)), ("bias", (6,))])  # 26 parameters: D = 32
ORDER = 32

pytestmark = pytest.mark.usefixtures("one_thread")


def definition(layout, key):
    """z (size,) as the module's first lines define it, element by element; padding is zero."""
    z, number = np.zeros(layout.size, np.float32), 0
    shared, row = round_signs_key(key), key.index % 2**20
    order = 1 << (layout.parameters - 1).bit_length()
    own = signs(shared, np.array([layout.size + row]))[0]
    common = signs(shared, np.arange(layout.size))
    for span in layout.tensors:
        for address in range(span.start, span.stop):
            odd = (row % order & number).bit_count() % 2
            z[address] = own * common[address] * (-1 if odd else 1)
            number += 1
    return z


def family_of(layout):
    return DIRECTIONS["hadamard"](layout)


def trained(layout, keys, family="hadamard"):
    """The directions (q, d) of the parameters alone."""
    directions, z = DIRECTIONS[family](layout), torch.zeros(len(keys), layout.size)
    for row, key in zip(z, keys, strict=True):
        directions.add_to_(row, [key], [1.0])
    return torch.cat([z[:, span.start : span.stop] for span in layout.tensors], 1).double()


@pytest.mark.parametrize("layout", [LAYOUT, SMALL])
@pytest.mark.parametrize(
    "key", [KEY, replace(KEY, index=2**20 - 1), replace(KEY, slot=0), probe_keys(3, 9)[-1]]
)
def test_it_is_its_definition(layout, key):
    z = torch.zeros(layout.size)
    family_of(layout).add_to_(z, [key], [1.0])
    layout.clear_padding_(z)
    assert np.array_equal(z.numpy(), definition(layout, key))


def test_parts_of_any_size_have_the_same_signs(monkeypatch):
    """Where high bits of numbers change, a part ends; rows are made element by element."""
    family, ids = family_of(LAYOUT), torch.tensor([2, 0, 1])
    whole = torch.zeros(LAYOUT.size)
    keys, coefficients = direction_keys(1, 1, 0, 0, 40), [0.1 * (k - 20) for k in range(40)]
    family.add_to_(whole, keys, coefficients)
    monkeypatch.setattr(hadamard, "CPU_BITS", 5)  # 2**5 elements, of 2,180
    pieces = torch.zeros(LAYOUT.size)
    family.add_to_(pieces, keys, coefficients)
    assert torch.equal(whole, pieces)
    start, z = LAYOUT.tensors[2].start, torch.zeros(LAYOUT.size)
    rows = torch.zeros(3, 700)
    family.add_rows_(rows, ids, start, keys[33], 1.0)
    family.add_to_(z, keys[33:34], [1.0])
    assert torch.equal(rows, z[start:].view(-1)[:2100].view(3, 700)[ids])


@pytest.mark.parametrize("slot", [0, 9])
def test_d_successive_directions_are_a_tight_frame(slot):
    for first in (0, 32, 64):
        z = trained(SMALL, direction_keys(4, 2, slot, first, ORDER))
        assert torch.equal(z.T @ z, ORDER * torch.eye(26, dtype=torch.float64))
    square = Layout.of([("m", (4, 8))])
    z = trained(square, direction_keys(4, 2, slot, 0, ORDER))
    assert torch.equal(z @ z.T, ORDER * torch.eye(32, dtype=torch.float64))


def estimates(family, queries, runs, measured=lambda numbers, z: numbers):
    """Gradients (runs, d) that rounds estimate of one gradient (d,), and that gradient."""
    gradient = torch.linspace(-1, 2, 26, dtype=torch.float64)
    rows = []
    for round_ in range(1, runs + 1):
        z = trained(SMALL, direction_keys(1, round_, 0, 0, queries), family)
        rows.append(measured(z @ gradient, z) @ z / queries)
    return torch.stack(rows), gradient


def test_fewer_are_unbiased_with_less_variance_than_independent_signs():
    runs, energy = 300, {}
    for family in ("hadamard", "rademacher"):
        rows, gradient = estimates(family, ORDER // 2, runs)
        error = rows.mean(0) - gradient
        energy[family] = float((rows - gradient).square().sum(1).mean() / gradient.square().sum())
        assert error.square().sum() < 3 * energy[family] * gradient.square().sum() / runs
    squares = gradient.square()  # numbers 0 and 16, …, 9 and 25 are equal modulo 16
    disturbing = squares[:10].sum() + squares[16:].sum()
    assert energy["hadamard"] == pytest.approx(float(disturbing / squares.sum()))
    assert energy["rademacher"] == pytest.approx(25 / 16, rel=0.2)


def test_one_sided_numbers_stay_unbiased_without_their_mean():
    """The curvature adds the same to all of them; centring must not lose a parameter with it."""

    def bent(numbers, z):
        return torch.from_numpy(centre((numbers + 7.0).numpy(), ORDER))

    rows, gradient = estimates("hadamard", ORDER, 150, bent)
    error = rows.mean(0) - gradient
    assert (rows - gradient).square().sum(1).mean() < 0.1 * gradient.square().sum()
    assert error.square().sum() < 0.001 * gradient.square().sum()


def test_exact_slopes_along_d_directions_give_the_gradient():
    layout = Layout.of([("weight", (10, 7)), ("bias", (10,)), ("wide", (3, 50))])
    family, gradient, eps = family_of(layout), torch.zeros(layout.size), 1e-3
    generator = torch.Generator().manual_seed(1)
    for view in layout.views(gradient).values():
        view.normal_(generator=generator)
    keys = direction_keys(1, 1, 0, 0, family.order)
    differences = exact_differences(family, keys, gradient, eps)
    estimate = torch.zeros(layout.size)
    scales = differences.astype(np.float64) / (2 * eps * len(keys))
    family.add_to_(estimate, keys, scales.tolist())
    layout.clear_padding_(estimate)
    torch.testing.assert_close(estimate, gradient, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_the_float32_sum_rounded_to_nearest():
    family, source = family_of(LAYOUT), torch.linspace(-2, 2, LAYOUT.size).bfloat16()
    expected, out = source.float(), torch.empty_like(source)
    family.add_to_(expected, [KEY], [0.01])
    LowPrecision(family).perturb_(out, source, 0, KEY, 0.01)
    assert torch.equal(out, expected.bfloat16())
    part = slice(TILE + 3, 2 * TILE + 100)
    LowPrecision(family).perturb_(out[part], source[part], part.start, KEY, 0.01)
    assert torch.equal(out[part], expected.bfloat16()[part])


def test_rounds_and_sites_have_signs_of_their_own():
    ours = trained(SMALL, direction_keys(1, 1, 0, 0, ORDER))
    for other in (direction_keys(1, 2, 0, 0, ORDER), direction_keys(1, 1, 5, 0, ORDER)):
        assert (ours @ trained(SMALL, other).T).abs().max() < 26  # no direction is there again


def test_what_it_cannot_read_is_refused():
    with pytest.raises(ValueError, match="contiguous float32"):
        family_of(SMALL).add_to_(torch.zeros(16)[::2], [KEY], [1.0])


def test_one_step_of_a_federation_along_d_directions_is_the_gradients(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    app = write_problem(tmp_path, "own_hadamard")
    common = {
        **{
            "app": app,
            "directions": "hadamard",
            "num-rounds": 1,
            "num-clients": 2,
            "step": "plain",
        },
        **{"zo-batch-size": 0, "queries": 256, "eps": 0.001, "learning-rate": 0.5},
    }
    start = {}
    run = Config({**SETTINGS, **common, "output-dir": str(tmp_path), "partitioner": "iid"})
    result = federate(run, on_round=lambda open_run, _: start.update(oracle=open_run.oracle))
    model, problem = start["oracle"].replica.model, load_problem(app).problem
    step = replayed(run, None, 0) - result.flat  # learning rate times the gradient, per parameter
    model.flat.copy_(replayed(run, None, 0))
    rows = problem.examples()
    parameters = [p.requires_grad_() for _, p in model.module.named_parameters()]
    gradients = torch.autograd.grad(cross_entropy(model.module(*rows[:2]), rows[2]), parameters)
    for span, gradient in zip(model.layout.tensors, gradients, strict=True):
        ours = step[span.start : span.stop].view(span.shape) / 0.5
        torch.testing.assert_close(ours, gradient, rtol=0.02, atol=2e-3)
    assert model.layout.parameters == 190


def test_a_run_is_replayed_and_resumed_to_the_bit(tmp_path):
    changes = {"directions": "hadamard", "seed_schedule": "independent", "local_steps": 2}
    whole = federate(config(tmp_path, "whole", **changes))
    with ledger_of(whole.config) as ledger:
        assert torch.equal(replayed(whole.config, ledger, 3), whole.flat)
    short = config(tmp_path, "short", num_rounds=2, **changes)
    assert federate(short).digest != whole.digest
    assert federate(resumed(short, num_rounds=3)).digest == whole.digest
