"""Forward differences: the slopes of autograd, q + 1 evaluations, and no bend after centring."""

import numpy as np
import pytest
import torch
from federation import Network, config, federate
from torch import nn

from client.site.first_order import gradient_of_all
from dandelion.engines.local import contexts_of, merge_requests
from server.ledger.run_folder import open_run
from server.run import train
from shared.base.errors import ConfigError
from shared.base.flat import flatten
from shared.config.schema import Config
from shared.directions import DIRECTIONS
from shared.estimation.forward_differences import centre, forward_differences, without_bend
from shared.estimation.perturber import Perturber
from shared.estimation.two_point import two_point
from shared.modes.estimators import cost, estimator_of, with_estimator
from shared.modes.mode import GRADIENT, MEASURE, Plan
from shared.protocol.entry import Entry
from shared.randomness.streams import Key
from shared.training.oracle import Oracle

EPS = 0.25  # a power of two: perturbed parameters below are exact
KEYS = [Key(3, 1, 0, index) for index in range(8)]
WHOLE = 23  # examples of a site


def quadratic():
    """½·3‖x‖² + b·x over integers: for signs z, zᵀHz is the trace, 3·40, for each z."""
    x = torch.arange(-20, 20, dtype=torch.float32)
    b = torch.arange(40, dtype=torch.float32) % 7
    model = flatten(nn.ParameterDict({"x": x}))
    calls = []

    def loss():
        y = model.module["x"].detach().double()
        calls.append(1)
        return float(1.5 * (y * y).sum() + (b * y).sum())

    return model, loss, calls


def measure(keys=KEYS):
    model, loss, calls = quadratic()
    perturber = Perturber(model, DIRECTIONS["rademacher"](model.layout))
    numbers, baseline = forward_differences(loss, perturber, keys, EPS)
    assert len(calls) == len(keys) + 1
    both = two_point(lambda query: loss(), perturber, keys, EPS).astype(np.float64)
    assert baseline == loss()
    return numbers, both


def test_a_number_is_the_slope_of_two_points_and_the_bend():
    numbers, both = measure()
    assert (numbers - both == EPS**2 * 3 * 40).all()


def test_centring_takes_the_bend_out_of_each_step_alone():
    numbers, both = measure()
    twice = np.concatenate([numbers, numbers + 5.0]).astype(np.float64)
    expected = (both - both.mean()) * len(both) / (len(both) - 1)
    np.testing.assert_allclose(centre(twice, len(both)), np.tile(expected, 2), rtol=1e-12)


def test_fewer_than_four_numbers_are_left_as_they_are():
    numbers = np.array([1.0, 2.0, 4.0])
    assert centre(numbers, 3) is numbers
    assert (centre(np.array([1.0, 2.0, 3.0, 6.0]), 4) == [-8 / 3, -4 / 3, 0.0, 4.0]).all()


def test_an_estimate_of_centred_numbers_is_unbiased():
    model, _, _ = quadratic()
    gradient = 3 * np.arange(-20, 20) + np.arange(40) % 7
    directions, rng = DIRECTIONS["rademacher"](model.layout), range(600)
    mean = np.zeros(40)
    for round_ in rng:
        keys = [Key(9, round_ + 1, 0, index) for index in range(8)]
        z = torch.zeros(8, model.layout.size)
        for row, key in zip(z, keys, strict=True):
            directions.add_to_(row, [key], [1.0])
        signs = z[:, :40].double().numpy()
        slopes = centre(2 * EPS * (signs @ gradient) + 7.0, 8) / (2 * EPS)
        mean += slopes @ signs / 8 / len(rng)
    error = np.linalg.norm(mean - gradient) / np.linalg.norm(gradient)
    assert error < 3 * (40 / 8 / len(rng)) ** 0.5


def test_what_two_points_measured_is_not_centred():
    numbers = np.array([1.0, 2.0, 3.0, 6.0])
    assert without_bend(Config({"estimator": "two-point", "queries": 4}), numbers) is numbers
    forward = Config({"estimator": "forward", "queries": 4})
    assert (without_bend(forward, numbers) == centre(numbers, 4)).all()
    published = Config({"estimator": "forward", "queries": 4, "centre-differences": False})
    assert without_bend(published, numbers) is numbers


@pytest.mark.parametrize("schedule", ["shared", "independent"])
def test_the_mean_stays_in_the_entry_if_numbers_are_not_centred(schedule, tmp_path):
    entries = []
    for centred in (True, False):
        chosen = config(
            tmp_path / str(centred), estimator="forward", queries=6, num_rounds=1, num_clients=2,
            eps=0.3, seed_schedule=schedule, centre_differences=centred, learning_rate=0.01,
        )  # fmt: skip
        with open_run(chosen) as run:
            train(Network(chosen), run, lambda report, round_: None)
            entries.append((run.ledger.entry(1).slots, run.ledger.site_numbers(1)))
    (centred, sites), (raw, same) = entries
    for slot in sites:
        assert (sites[slot].differences == same[slot].differences).all()
    for with_mean, without in zip(raw, centred, strict=True):
        assert abs(without.differences.mean()) < 1e-6 < abs(with_mean.differences.mean())
        expected = (with_mean.differences - with_mean.differences.mean()) * 6 / 5
        np.testing.assert_allclose(without.differences, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "plan", "expected"),
    [
        ({}, MEASURE, 7),
        ({"estimator": "two-point"}, MEASURE, 2 * 6),
        ({"estimator": "forward", "local-steps": 3}, MEASURE, 3 * 7),
        ({"estimator": "forward", "query-data": "shared"}, MEASURE, 7 * 6),
        ({"bp-batch-size": 8}, GRADIENT, 6),
        ({"zo-batch-size": 0, "bp-batch-size": 0}, GRADIENT, 3),
        ({"bp-batch-size": 0}, Plan(backpropagate=True), 7 + -(-3 * WHOLE // 4)),
    ],
    ids=str,
)
def test_forward_passes_are_counted_in_batches(settings, plan, expected):
    assert cost(Config({"queries": 6, **settings}), plan, WHOLE) == expected


@pytest.mark.parametrize(
    ("settings", "estimator"),
    [
        ({}, "forward"),
        ({"estimator": "two-point"}, "two-point"),
        ({"mode": "instruct"}, "two-point"),
        ({"query-data": "fresh"}, "two-point"),
        ({"scope": "words"}, "exact"),
        ({"scope": "words", "objective": "accuracy"}, "forward"),
    ],
    ids=str,
)
def test_auto_is_the_cheapest_that_works(settings, estimator):
    config = Config(settings)
    assert estimator_of(config) == estimator
    assert with_estimator(config).zo.estimator == estimator
    assert estimator_of(with_estimator(config)) == estimator


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"estimator": "forward", "mode": "instruct"}, "both sides"),
        ({"estimator": "forward", "query_data": "fresh"}, "baseline of its own"),
        ({"estimator": "backward"}, "unknown estimator"),
        ({"zo_batch_size": 0, "query_data": "shared"}, "sees all"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_with_its_reason(tmp_path, changes, reason):
    with pytest.raises(ConfigError, match=reason):
        config(tmp_path, **changes)


FORWARD = {"estimator": "forward", "queries": 5, "num_rounds": 2}
SHARDS = {"zo_batch_size": 0, "max_samples": 4}  # about a hundred blocks a site, in seven passes


def numbers_of(outcome, round_=1):
    """Loss and numbers that each site sent in a round, by site."""
    rows = [row for row in outcome.rows["contributions"] if row[0] == round_]
    return {row[2]: (row[4], np.frombuffer(row[6], np.float32)) for row in rows}


def expect_alike(some, others):
    assert some.keys() == others.keys()
    for site, (loss, numbers) in some.items():
        assert loss == pytest.approx(others[site][0], rel=1e-6)
        np.testing.assert_allclose(numbers, others[site][1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"merge_clients": True},
        {"directions": "lowrank", "parallel_queries": 2},
        {"directions": "lowrank", "parallel_queries": 8, **SHARDS},
        {"merge_clients": True, **SHARDS},
    ],
    ids=str,
)
def test_numbers_are_the_same_however_forward_passes_are_shared(tmp_path, changes):
    directions = {"directions": changes.get("directions", "rademacher")}
    common = {**FORWARD, **directions, **(SHARDS if "zo_batch_size" in changes else {})}
    alone = federate(config(tmp_path, "alone", **common))
    chosen = config(tmp_path, "together", **{**common, **changes})
    grid = Network(chosen)
    if chosen.federation.merge_clients:
        grid._before = merge_requests(contexts_of(chosen))
    expect_alike(numbers_of(federate(chosen, grid)), numbers_of(alone))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed_schedule": "independent", "local_steps": 2},
        {"staleness": 1},
        {"dtype": "bfloat16", "eps": 0.01},
        {"mode": "calibrate", "bp_interval": 2, "bp_batch_size": 0},
        {"scope": "head"},
    ],
    ids=str,
)
def test_forward_runs_are_repeated_to_the_bit_and_counted(tmp_path, changes):
    common = {**FORWARD, "queries": 4, "num_rounds": 3, **changes}
    runs = [federate(config(tmp_path, name, **common)) for name in ("one", "other")]
    assert runs[0].entries == runs[1].entries
    measured = {row[0] for row in runs[0].rows["contributions"] if row[6]}
    forwards = {row[0]: row[6] for row in runs[0].rows["metrics"]}
    steps = common.get("local_steps", 1)
    assert measured
    assert all(forwards[round_] == 3 * 5 * steps for round_ in measured)


def test_entries_have_centred_numbers(tmp_path):
    outcome = federate(config(tmp_path, **FORWARD))
    sent = np.array([numbers for _, numbers in numbers_of(outcome).values()], np.float64)
    weights = np.array([row[3] for row in outcome.rows["contributions"] if row[0] == 1], float)
    (slot,) = Entry.decode(outcome.entries[0]).slots
    mean = np.average(sent, axis=0, weights=weights)
    expected = (mean - mean.mean()) * 5 / 4
    np.testing.assert_allclose(slot.differences, expected, rtol=2e-7, atol=1e-12)
    assert abs(slot.differences.sum()) < 1e-6


def test_the_gradient_of_a_whole_shard_is_that_of_one_batch(tmp_path):
    chosen = config(tmp_path, mode="fo", bp_batch_size=0, max_samples=4)
    oracle = Oracle.of(chosen)
    rows = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (37, 16)))
    loss, gradient = gradient_of_all(oracle, rows)
    expected_loss, expected = oracle.gradient(rows)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert (gradient - expected).norm() < 1e-5 * expected.norm()
    assert oracle.loss_of_all(rows) == pytest.approx(expected_loss, rel=1e-6)
    assert federate(chosen).summary["rounds"] == 3


def test_a_whole_shard_is_one_batch_whose_order_is_that_of_the_data(tmp_path):
    whole = federate(config(tmp_path, "whole", **SHARDS, num_rounds=1))
    counts = {row[2]: row[3] for row in whole.rows["contributions"]}
    as_drawn = SHARDS | {"zo_batch_size": max(counts.values())}
    drawn = federate(config(tmp_path, "drawn", **as_drawn, num_rounds=1))
    assert len(set(counts.values())) >= 1
    largest = max(counts, key=counts.get)
    alike = numbers_of(whole)[largest], numbers_of(drawn)[largest]
    expect_alike({largest: alike[0]}, {largest: alike[1]})
