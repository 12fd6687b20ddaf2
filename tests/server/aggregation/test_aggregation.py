"""Many sites' numbers become one set, and a few liars do not decide it, except under the mean."""

import random
from dataclasses import replace

import numpy as np
import pytest
from federation import Network, altered, config, federate, is_reply
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.aggregation.rules import RULES, aggregate, by_flower, combine, mean
from server.ledger.records import Contribution
from shared.base.errors import ConfigError
from shared.config.schema import Config

TRAINING = {
    "learning_rate": 4e-3,
    "queries": 6,
    "zo_batch_size": 4,
    "num_rounds": 6,
    "eval_interval": 0,
}
MANY = {"bulyan": 7}  # Flower's Bulyan needs 4f + 3 sites to withstand f


def enough(rule):
    sites = MANY.get(rule, 5)
    return {"aggregation": rule, "num_clients": sites, "min_clients": sites, **TRAINING}


def contribution(slot, differences, examples=10):
    numbers = np.asarray(differences, np.float32)
    return Contribution(3, slot, str(slot), examples, 2.5, 0.1, numbers)


@pytest.fixture
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


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"mean"}))
def test_one_liar_does_not_keep_the_loss_from_falling(tmp_path, rule):
    chosen = config(tmp_path, **enough(rule))
    summary = federate(chosen, Network(chosen, change=lying)).summary
    assert summary["evaluation_loss_last"] < summary["evaluation_loss_first"] - 0.1
    assert summary["refused_replies"] == 0  # the numbers are finite: only the rule can tell


def test_one_liar_ruins_the_mean(tmp_path):
    chosen = config(tmp_path, **enough("mean"))
    honest = federate(chosen).summary
    assert honest["evaluation_loss_last"] < honest["evaluation_loss_first"] - 0.1
    chosen = config(tmp_path, "poisoned", **enough("mean"))
    poisoned = federate(chosen, Network(chosen, change=lying)).summary
    assert not poisoned["evaluation_loss_last"] < poisoned["evaluation_loss_first"]


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.usefixtures("identity")
def test_sites_that_agree_are_believed(tmp_path, rule):
    numbers = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    equal = [contribution(slot, numbers, 10 * slot) for slot in range(1, 8)]
    (group,) = combine(config(tmp_path, **enough(rule)), equal)
    assert group.slot == 0
    assert np.array_equal(group.differences, numbers)


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.usefixtures("identity")
def test_one_number_far_off_is_left_out(tmp_path, rule):
    others = [contribution(slot, [1.0 + slot / 100] * 4) for slot in range(1, 8)]
    result = aggregate(config(tmp_path, **enough(rule)), [contribution(8, [1e4] * 4), *others])
    assert (result > 100).all() if rule == "mean" else (abs(result - 1.04) < 0.1).all()


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_order_of_arrival_is_irrelevant(tmp_path, rule):
    few = {**enough(rule), "num_rounds": 3, "zo_batch_size": 1, "queries": 2}

    class Shuffled(Network):
        def pull_messages(self, message_ids):
            arrived = super().pull_messages(message_ids)
            random.Random(rule).shuffle(arrived)
            return arrived

    chosen, other = config(tmp_path, **few), config(tmp_path, "shuffled", **few)
    assert federate(chosen).entries == federate(other, Shuffled(other)).entries


@pytest.mark.usefixtures("identity")
def test_the_mean_weighs_by_examples(tmp_path):
    numbers = np.random.default_rng(2).standard_normal((3, 16)).astype(np.float32)
    examples = [1, 10, 1000]
    sites = [contribution(k + 1, numbers[k], examples[k]) for k in range(3)]
    (group,) = combine(config(tmp_path), sites)
    expected = np.average(numbers.astype(np.float64), axis=0, weights=examples)
    np.testing.assert_array_equal(group.differences, expected.astype(np.float32))


@pytest.mark.usefixtures("identity")
@given(
    examples=st.lists(st.integers(1, 10**6), min_size=1, max_size=20),
    seed=st.integers(0, 2**32),
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_mean_has_the_bits_of_flowers_fedavg(examples, seed):
    numbers = np.random.default_rng(seed).standard_normal((len(examples), 9)).astype(np.float32)
    sites = [contribution(k, numbers[k], count) for k, count in enumerate(examples)]
    np.testing.assert_array_equal(mean(sites), by_flower(Config(aggregation="mean"), sites))


@pytest.mark.usefixtures("identity")
def test_the_median_weighs_all_sites_alike(tmp_path):
    chosen = config(tmp_path, **enough("median"))
    sites = [contribution(k, [value], 10**k) for k, value in ((1, 5.0), (2, 7.0), (3, 9.0))]
    assert aggregate(chosen, sites) == [7.0]


def test_directions_of_their_own_keep_their_numbers_and_weigh_by_examples(tmp_path):
    chosen = config(tmp_path, seed_schedule="independent")
    sites = [contribution(4, [1.0, 2.0], 30), contribution(9, [4.0, 8.0], 10)]
    groups = combine(chosen, sites)
    assert [group.slot for group in groups] == [4, 9]
    assert [group.differences.tolist() for group in groups] == [[0.75, 1.5], [1.0, 2.0]]
    assert all(group.differences.dtype == np.float32 for group in groups)


def test_directions_of_their_own_also_lower_the_loss(tmp_path):
    chosen = config(tmp_path, seed_schedule="independent", **TRAINING)
    summary = federate(chosen).summary
    assert summary["evaluation_loss_last"] < summary["evaluation_loss_first"] - 0.1


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"mean"}))
def test_directions_of_their_own_cannot_be_compared(tmp_path, rule):
    with pytest.raises(ConfigError, match="needs seed-schedule 'shared'"):
        config(tmp_path, seed_schedule="independent", **enough(rule))


@pytest.mark.parametrize(("rule", "needed"), [("krum", 4), ("multi-krum", 4), ("bulyan", 7)])
def test_a_rule_that_needs_more_sites_says_so(tmp_path, rule, needed):
    with pytest.raises(ConfigError, match=f"needs min-clients >= {needed}, got {needed - 1}"):
        config(tmp_path, aggregation=rule, min_clients=needed - 1)
