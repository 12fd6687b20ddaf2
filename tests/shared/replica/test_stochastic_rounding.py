"""Stochastic rounding keeps the mean, is the same everywhere, and bfloat16 replicas stay equal."""

import logging
import math

import numpy as np
import pytest
import torch
from federation import config, federate, folder_of, ledger_of, replayed, resumed
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dandelion.cli.app import app
from shared.base.errors import ConfigError
from shared.base.flat import Layout, flatten
from shared.directions import DIRECTIONS
from shared.directions.kernels import philox_cpu as rounding_cpu
from shared.directions.kernels import plain_torch as rounding_torch
from shared.randomness.streams import Key, rounding_key
from shared.replica.stochastic_rounding import count_unperturbed, reference, round_
from shared.training.oracle import Oracle

KEY = rounding_key(7, 3, 0, 0)
SPECIAL = [0.0, -0.0, 1.0, -2.5, math.nan, math.inf, -math.inf, 1e-40, 3.3e38]
LOW = {"dtype": "bfloat16"}


def bits(tensor):
    return tensor.view(torch.int16)


def rounded(values, key=KEY, start=0):
    out = torch.empty(len(values), dtype=torch.bfloat16)
    round_(out, values, key, start)
    return out


@pytest.mark.parametrize("kernel", [rounding_cpu, rounding_torch])
@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 5000), start=st.integers(0, 1 << 33), seed=st.integers(0, 1 << 62))
def test_a_kernel_equals_the_reference(kernel, size, start, seed):
    values = torch.randn(size, generator=torch.Generator().manual_seed(size))
    values[: len(SPECIAL)] = torch.tensor(SPECIAL[:size])
    key, out = rounding_key(seed, 3, 1, 2), torch.empty(size, dtype=torch.bfloat16)
    kernel.round_(out, values, key, start)
    assert (bits(out).numpy().view(np.uint16) == reference(values.numpy(), key, start)).all()


def test_numbers_go_to_a_neighbour_with_odds_that_keep_the_mean():
    for share in (0.1, 0.5, 0.9):
        low, high = 1.0, 1.0 + 2**-7
        out = rounded(torch.full((100_000,), low + share * (high - low))).float()
        assert set(out.tolist()) == {low, high}
        five_deviations = 5 * math.sqrt(share * (1 - share) / len(out))
        assert ((out == high).float().mean() - share).abs() < five_deviations


def test_what_needs_no_rounding_stays():
    values = torch.randn(5000).bfloat16()
    assert torch.equal(bits(rounded(values.float())), bits(values))
    strange = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0])
    out = rounded(strange)
    assert torch.isnan(out[0])
    assert torch.equal(bits(out[1:]), bits(strange[1:].bfloat16()))


def test_small_steps_add_up_where_rounding_to_nearest_loses_them():
    weights, nearest = torch.ones(4096).bfloat16(), torch.ones(4096).bfloat16()
    for step in range(100):
        round_(weights, weights.float() + 1e-4, rounding_key(1, step, 0, 0), 0)
        nearest += 1e-4
    assert (nearest == 1).all()
    assert weights.float().mean().item() == pytest.approx(1.01, abs=5e-4)


def test_any_slice_at_any_number_of_threads_is_rounded_alike():
    values, before = torch.randn(1 << 19), torch.get_num_threads()
    whole = rounded(values)
    try:
        torch.set_num_threads(2)
        assert torch.equal(bits(rounded(values)), bits(whole))
    finally:
        torch.set_num_threads(before)
    for start, stop in ((3, 70), (1 << 12, 1 << 18), (12345, 12346)):
        part = rounded(values[start:stop].clone(), start=start)
        assert torch.equal(bits(part), bits(whole[start:stop]))
    assert not torch.equal(bits(rounded(values, rounding_key(7, 4, 0, 0))), bits(whole))


# --- replicas in bfloat16


@pytest.mark.parametrize(
    "more",
    [{}, {"momentum": 0.9}, {"optimizer": "adam", "learning_rate": 1e-3}, {"mode": "fo"},
     {"mode": "instruct", "bp_interval": 2, "guidance": "reuse"}, {"local_steps": 3},
     {"scope": "lora", "eps": 1e-2}, {"seed_schedule": "independent", "weight_decay": 0.01},
     {"directions": "lowrank"}],
)  # fmt: skip
def test_a_bfloat16_run_is_replayed_to_the_bit_and_resumed(tmp_path, more):
    c = config(tmp_path, snapshot_interval=2, num_rounds=3, **LOW, **more)
    result = federate(c)
    assert result.flat.dtype == torch.bfloat16
    assert not result.summary["refused_replies"]
    with ledger_of(c) as ledger:
        if c.training.mode not in ("fo", "instruct"):  # whose gradients give way to snapshots
            assert torch.equal(bits(replayed(c, ledger, 3)), bits(result.flat))
    further = federate(resumed(c, num_rounds=5))
    whole = federate(config(tmp_path, "whole", snapshot_interval=2, num_rounds=5, **LOW, **more))
    assert further.digest == whole.digest != result.digest
    done = CliRunner().invoke(app, ["ledger", "verify", str(folder_of(c))])
    assert done.exit_code == 0, done.output
    assert f"digest {further.digest}" in done.output


def test_steps_far_below_the_spacing_still_move_a_bfloat16_model(tmp_path):
    c = config(tmp_path, learning_rate=1e-5, **LOW)
    before = Oracle.of(c).replica.model.flat.clone()
    moved = (federate(c).flat != before).float().mean()
    assert 0 < moved < 0.5


def test_the_loss_of_a_bfloat16_model_is_computed_in_float32(tmp_path):
    rows = torch.arange(32).view(2, 16)
    full, low = (Oracle.of(config(tmp_path, dtype=d)) for d in ("float32", "bfloat16"))
    assert low.loss(rows) == pytest.approx(full.loss(rows), abs=0.02)
    _, gradient = low.gradient(rows)
    assert gradient.dtype == torch.float32
    assert torch.cosine_similarity(gradient, full.gradient(rows)[1], dim=0) > 0.99


def test_a_bfloat16_model_is_measured_at_points_rounded_to_nearest(tmp_path):
    oracle = Oracle.of(config(tmp_path, **LOW))
    model, rows, key = oracle.replica.model, torch.arange(32).view(2, 16), Key(1, 1, 0, 0)
    before, z = model.flat.clone(), torch.zeros(model.layout.size)
    DIRECTIONS["rademacher"](model.layout).add_to_(z, [key], [0.01])
    with oracle.perturber.at(key, 0.01):
        measured = oracle.loss(rows)
    assert torch.equal(bits(model.flat), bits(before))
    model.flat.copy_(before.float() + z)
    assert oracle.loss(rows) == measured


def test_fedavg_in_bfloat16_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="dtype 'bfloat16' with mode 'fedavg'"):
        config(tmp_path, mode="fedavg", **LOW)


# --- eps that is lost


def test_what_eps_does_not_move_is_counted_exactly():
    module = torch.nn.Module()
    module.small = torch.nn.Parameter(torch.full((3000,), 0.02).bfloat16())
    module.gains = torch.nn.Parameter(torch.ones(1000).bfloat16())
    model = flatten(module)
    unperturbed = count_unperturbed(model.flat, model.layout, 1e-3)
    assert unperturbed.share == 0.25
    assert unperturbed.tensors == ("gains",)
    assert unperturbed.matters
    assert unperturbed.needed == 2**-7  # the spacing above 1
    assert not count_unperturbed(model.flat, model.layout, unperturbed.needed).share
    assert count_unperturbed(model.flat, model.layout, 1e-6).share == 1


def test_float32_notices_the_usual_eps():
    layout = Layout.of([("w", (4096,))])
    assert count_unperturbed(torch.randn(4096), layout, 1e-3).share == 0
    assert count_unperturbed(torch.ones(4096), layout, 1e-9).share == 1


def test_a_run_whose_eps_is_lost_warns_with_numbers(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "dandelion"):
        federate(config(tmp_path, num_rounds=1, **LOW))
        federate(config(tmp_path, "wide", num_rounds=1))
    (warning,) = [r.getMessage() for r in caplog.records if "rounding" in r.getMessage()]
    assert "eps = 0.001 is lost to rounding at 0.26 % of the parameters in bfloat16" in warning
    assert "99 % of them would notice eps = 0.00024" in warning
    assert "5 tensors such as transformer.h.0.ln_1.weight" in warning
