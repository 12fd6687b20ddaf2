"""Many sites' numbers become one set, and a few liars do not decide it, except under the mean."""

import random
from dataclasses import replace

import numpy as np
import pytest
from federation import Network, altered, config, federate, is_reply
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.aggregation.combine import combine_differences
from server.aggregation.weights import LimitNotice, limit_shares
from server.ledger.records import Contribution
from shared.aggregation import AGGREGATION, rule_of
from shared.aggregation.flower import aggregate_by_flower, mean
from shared.base.errors import ConfigError

TRAINING = {
    "learning_rate": 4e-3,
    "queries": 6,
    "zo_batch_size": 4,
    "num_rounds": 6,
    "eval_interval": 0,
}
SITES = 7  # in the contract tests; rules that withstand one liar need no more
ROBUST = ("median", "trimmed-mean", "krum", "multi-krum", "bulyan")
MANY = {"bulyan": 7}  # Flower's Bulyan needs 4f + 3 sites to withstand f


def enough(rule):
    sites = MANY.get(rule, 5)
    return {"aggregation": rule, "num_clients": sites, "min_replies": sites, **TRAINING}


def contribution(slot, differences, examples=10):
    numbers = np.asarray(differences, np.float32)
    return Contribution(3, slot, str(slot), examples, 2.5, 0.1, numbers)


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """What Flower sets before an app may build messages."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def lying(reply):
    """Site 0 sends numbers that are far off, another set each round."""
    if not is_reply(reply, site=0):
        return [reply]
    signs = np.random.default_rng(int(reply.metadata.group_id)).choice([-1e4, 1e4], 6)
    return [altered(reply, lambda m: replace(m, differences=signs.astype(np.float32)))]


@pytest.mark.parametrize("rule", ROBUST)
def test_one_liar_does_not_keep_the_loss_from_falling(tmp_path, rule):
    chosen = config(tmp_path, **enough(rule))
    summary = federate(chosen, Network(chosen, change=lying)).summary
    assert summary["evaluation_loss_last"] < summary["evaluation_loss_first"] - 0.1
    assert summary["refused_replies"] == 0  # the numbers are finite: only the rule can tell


def test_one_liar_does_not_ruin_the_mean_either_and_is_refused_with_a_reason(tmp_path):
    chosen = config(tmp_path, **enough("mean") | {"min_replies": 4})
    result = federate(chosen, Network(chosen, change=lying))
    summary = result.summary
    assert summary["evaluation_loss_last"] < summary["evaluation_loss_first"] - 0.1
    assert summary["refusals"] == {"out of proportion": 6}
    assert {(site, detail.partition(" up to")[0]) for _, _, site, _, detail in
            result.rows["refusals"]} == {("0", "slopes")}  # fmt: skip


@pytest.fixture(params=AGGREGATION.names())
def rule(request):
    """Every registered rule, with its own defaults: a new one gets the contract tests at once."""
    kind = AGGREGATION[request.param]
    return kind() if isinstance(kind, type) else kind


@pytest.fixture
def vectors():
    return np.random.default_rng(1).standard_normal((SITES, 16))


WEIGHTS = np.arange(10.0, 10.0 * SITES + 1, 10.0)


def test_a_rule_gives_one_float64_vector_and_leaves_those_of_the_sites_alone(rule, vectors):
    before = vectors.copy()
    vector = rule(vectors, WEIGHTS)
    assert vector.shape == (16,)
    assert vector.dtype == np.float64
    assert np.isfinite(vector).all()
    np.testing.assert_array_equal(vectors, before)


def test_a_rule_returns_the_vector_of_sites_that_are_all_equal(rule, vectors):
    equal = np.tile(vectors[0], (SITES, 1))
    np.testing.assert_allclose(rule(equal, WEIGHTS), vectors[0], rtol=1e-12)


def test_a_rule_does_not_depend_on_the_order_of_the_sites(rule, vectors):
    order = np.random.default_rng(2).permutation(SITES)
    shuffled = rule(vectors[order], WEIGHTS[order])
    np.testing.assert_allclose(shuffled, rule(vectors, WEIGHTS), rtol=1e-9, atol=1e-12)


def test_a_rule_gives_the_same_bits_again(rule, vectors):
    np.testing.assert_array_equal(rule(vectors, WEIGHTS), rule(vectors, WEIGHTS))


def two_point(tmp_path, rule):
    """A run whose numbers are not centred, as forward differences are."""
    return config(tmp_path, estimator="two-point", **enough(rule))


@pytest.mark.parametrize("name", AGGREGATION.names())
def test_an_entry_of_sites_that_agree_has_their_numbers(tmp_path, name):
    numbers = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    equal = [contribution(slot, numbers, 10 * slot) for slot in range(1, 8)]
    (slot,) = combine_differences(two_point(tmp_path, name), equal)
    assert slot.slot == 0
    assert np.array_equal(slot.differences, numbers)


@pytest.mark.parametrize("rule", ["mean", *ROBUST])
def test_one_number_far_off_is_left_out_except_by_the_mean(tmp_path, rule):
    others = [contribution(slot, [1.0 + slot / 100] * 4) for slot in range(1, 8)]
    sites = [contribution(8, [1e4] * 4), *others]
    (slot,) = combine_differences(two_point(tmp_path, rule), sites)
    result = slot.differences
    assert (result > 100).all() if rule == "mean" else (abs(result - 1.04) < 0.1).all()


@pytest.mark.parametrize("rule", ["mean", *ROBUST])
def test_the_order_of_arrival_is_irrelevant(tmp_path, rule):
    few = {**enough(rule), "num_rounds": 3, "zo_batch_size": 1, "queries": 2}

    class Shuffled(Network):
        def pull_messages(self, message_ids):
            arrived = super().pull_messages(message_ids)
            random.Random(rule).shuffle(arrived)
            return arrived

    chosen, other = config(tmp_path, **few), config(tmp_path, "shuffled", **few)
    assert federate(chosen).entries == federate(other, Shuffled(other)).entries


def test_the_mean_weighs_by_examples(tmp_path):
    numbers = np.random.default_rng(2).standard_normal((3, 16)).astype(np.float32)
    examples = [1, 10, 1000]
    sites = [contribution(k + 1, numbers[k], examples[k]) for k in range(3)]
    (slot,) = combine_differences(config(tmp_path, max_share=1.0), sites)
    expected = np.average(numbers.astype(np.float64), axis=0, weights=examples)
    np.testing.assert_array_equal(slot.differences, expected.astype(np.float32))


@pytest.mark.parametrize("schedule", ["shared", "independent"])
def test_a_site_that_claims_all_examples_is_half_of_the_mean(tmp_path, schedule):
    numbers = np.random.default_rng(2).standard_normal((5, 16)).astype(np.float32)
    examples = [2**32 - 1, 554, 500, 400, 300]
    sites = [contribution(k + 1, numbers[k], examples[k]) for k in range(5)]
    slots = combine_differences(config(tmp_path, seed_schedule=schedule), sites)
    shares = np.array([1754, *examples[1:]]) / (2 * 1754)
    expected = shares[:, None] * numbers
    if schedule == "shared":
        expected = [expected.sum(0)]
    np.testing.assert_allclose([each.differences for each in slots], expected, rtol=1e-5)


def test_with_equal_weights_no_claim_counts(tmp_path):
    sites = [contribution(1, [6.0], 10**6), contribution(2, [0.0], 1), contribution(3, [3.0], 5)]
    (slot,) = combine_differences(config(tmp_path, weights="equal"), sites)
    assert slot.differences == [3.0]


@given(
    weights=st.lists(st.integers(1, 2**32), min_size=1, max_size=9),
    most=st.sampled_from([0.2, 0.25, 0.34, 0.5, 0.9, 1.0]),
)
def test_a_share_is_limited_and_the_others_keep_their_proportion(weights, most):
    given_weights = np.array(weights, np.float64)
    limited = limit_shares(given_weights, most)
    if len(weights) * most > 1:
        assert limited.max() <= most * limited.sum() * (1 + 1e-9)
    assert (limited <= given_weights * (1 + 1e-9)).all()
    within = given_weights <= most * given_weights.sum()
    if within.all() or len(weights) * most <= 1:
        np.testing.assert_array_equal(limited, given_weights)  # honest runs keep their bits


def test_a_site_that_counts_less_than_its_examples_is_named_once(tmp_path, caplog):
    sites = [contribution(1, [6.0], 860), contribution(2, [0.0], 70), contribution(3, [3.0], 70)]
    notice = LimitNotice(config(tmp_path))
    notice.say(sites)
    notice.say(sites)
    (line,) = caplog.messages
    assert "site 1 has 86 % of the examples" in line
    assert "counts as 50 %" in line
    assert "max-share = 1" in line


@pytest.mark.parametrize(
    "changes", [{"max_share": 1.0}, {"weights": "equal"}, {"aggregation": "median"}]
)
def test_a_run_that_limits_no_share_names_no_site(changes, tmp_path, caplog):
    sites = [contribution(1, [6.0], 860), contribution(2, [0.0], 70), contribution(3, [3.0], 70)]
    LimitNotice(config(tmp_path, **changes)).say(sites)
    LimitNotice(config(tmp_path)).say(sites[:2])  # two cannot outvote one another
    assert not caplog.messages


def test_a_federation_of_one_large_site_says_that_it_is_limited(tmp_path, caplog):
    federate(config(tmp_path, max_share=0.3, num_clients=4, num_rounds=2))
    assert not [line for line in caplog.messages if "max-share" in line]  # they are alike
    caplog.clear()
    federate(config(tmp_path, max_share=0.3, num_clients=4, num_rounds=2,
                    partitioner="dirichlet", partition_alpha=0.1, name="skewed"))  # fmt: skip
    lines = [line for line in caplog.messages if "max-share = 0.3" in line]
    assert lines
    assert len(lines) == len(set(lines))


@given(
    examples=st.lists(st.integers(1, 10**6), min_size=1, max_size=20),
    seed=st.integers(0, 2**32),
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_mean_has_the_bits_of_flowers_fedavg(examples, seed):
    numbers = np.random.default_rng(seed).standard_normal((len(examples), 9)).astype(np.float32)
    vectors, weights = numbers.astype(np.float64), np.array(examples, np.float64)
    ours, flowers = mean(vectors, weights), aggregate_by_flower(FedAvg(), vectors, weights)
    np.testing.assert_array_equal(ours, flowers)


def test_the_median_weighs_all_sites_alike(tmp_path):
    chosen = config(tmp_path, **enough("median"))
    vectors, weights = np.array([[5.0], [7.0], [9.0]]), np.array([10.0, 100.0, 1000.0])
    assert rule_of(chosen)(vectors, weights) == [7.0]


def test_options_of_the_run_reach_the_rule(tmp_path):
    chosen = config(tmp_path, aggregation="trimmed-mean", trim_fraction=0.4)
    vectors = np.array([[0.0], [1.0], [2.0], [30.0], [400.0]])
    assert rule_of(chosen)(vectors, np.ones(5)) == [2.0]


def test_directions_of_their_own_keep_their_numbers_and_weigh_by_examples(tmp_path):
    chosen = config(tmp_path, seed_schedule="independent")
    sites = [contribution(4, [1.0, 2.0], 30), contribution(9, [4.0, 8.0], 10)]
    slots = combine_differences(chosen, sites)
    assert [each.slot for each in slots] == [4, 9]
    assert [each.differences.tolist() for each in slots] == [[0.75, 1.5], [1.0, 2.0]]
    assert all(each.differences.dtype == np.float32 for each in slots)


def test_directions_of_their_own_also_lower_the_loss(tmp_path):
    chosen = config(tmp_path, seed_schedule="independent", **TRAINING)
    summary = federate(chosen).summary
    assert summary["evaluation_loss_last"] < summary["evaluation_loss_first"] - 0.1


@pytest.mark.parametrize("rule", ROBUST)
def test_directions_of_their_own_cannot_be_compared(tmp_path, rule):
    with pytest.raises(ConfigError, match="needs seed-schedule 'shared'"):
        config(tmp_path, seed_schedule="independent", **enough(rule))


@pytest.mark.parametrize(("rule", "needed"), [("krum", 4), ("multi-krum", 4), ("bulyan", 7)])
def test_a_rule_that_needs_more_sites_says_so(tmp_path, rule, needed):
    with pytest.raises(ConfigError, match=f"needs min-replies >= {needed}, got {needed - 1}"):
        config(tmp_path, aggregation=rule, min_replies=needed - 1)
