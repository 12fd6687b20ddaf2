"""FedAvg as the baseline: the parameters' mean, on the same ledger, evaluation and accounting."""

import pytest
import torch
from fleet import config, federate

from client.site.first_order import train_locally
from client.site.replica_host import ReplicaHost
from shared.base.errors import ConfigError, StalledError
from shared.training.oracle import Oracle


def test_one_round_is_the_mean_of_what_the_sites_parameters_came_to(tmp_path):
    c = config(tmp_path, mode="fedavg", local_steps=3, num_rounds=1)
    result, mean, weight = federate(c), 0, 0
    for number in range(3):
        host = ReplicaHost(c)
        site = host._site({"partition-id": number, "num-partitions": 3})
        losses, way = train_locally(
            c, host._oracle, site.examples, number + 1, 1, c.optimizer.learning_rate
        )
        assert losses[-1] < losses[0]
        mean = mean + (host._oracle.replica.model.flat - way).double() * site.count
        weight += site.count
    assert torch.allclose(result.flat.double(), mean / weight, atol=1e-7)


def test_training_at_a_site_leaves_the_replica_as_it_was(tmp_path):
    c = config(tmp_path, mode="fedavg", local_steps=2, weight_decay=0.1)
    host = ReplicaHost(c)
    site = host._site({"partition-id": 0, "num-partitions": 3})
    before = host._oracle.replica.digest()
    train_locally(c, host._oracle, site.examples, 1, 1, 0.01)
    host._oracle.replica.set_round(0)
    assert host._oracle.replica.digest() == before


def test_averaged_parameters_are_sent_in_full_both_ways_and_cost_three_passes_a_step(tmp_path):
    c = config(tmp_path, mode="fedavg", local_steps=3, num_rounds=2)
    result = federate(c)
    parameters = Oracle.of(c).replica.model.layout.parameters
    up = {row[3] for row in result.traffic if row[1:3] == ("up", "gradient")}
    assert up == {44 + 16 + 4 * parameters}
    assert result.forwards == [3 * 3 * 3] * 2


def test_the_same_seed_gives_the_same_digest_with_adapters_too(tmp_path):
    runs = [federate(config(tmp_path, name, mode="fedavg", scope="lora", learning_rate=0.01))
            for name in "ab"]  # fmt: skip
    assert runs[0].digest == runs[1].digest
    assert runs[0].losses[-1] < runs[0].losses[0]


def test_a_site_that_cannot_backpropagate_is_refused_with_the_reason(tmp_path):
    c = config(tmp_path, mode="fedavg", min_clients=3)
    with pytest.raises(StalledError, match="this one cannot backpropagate"):
        federate(c, unable=(1,))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"mode": "fedavg", "optimizer": "adam"}, "sites step by AdamW"),
        ({"mode": "fo", "local_steps": 2}, "a gradient is of one point"),
        ({"mode": "instruct", "aggregation": "krum", "min_clients": 4}, "keeps whole replies"),
        ({"mode": "instruct", "guidance": "reuse", "instruct_directions": "masked"}, "use tilted"),
        ({"error_feedback": True}, "nothing is lost"),
        ({"lora_targets": "c_attn"}, "needs scope lora, got 'full'"),
        ({"split_bp_zo_data": True, "bp_dataset": "stdlib"}, "these are apart already"),
        ({"bp_weight": "half"}, "auto or a number from 0 to 1 expected, got 'half'"),
        ({"bp_weight": "1.5"}, "auto or a number from 0 to 1 expected, got '1.5'"),
        ({"codec": "zip"}, "unknown codec 'zip'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text, tmp_path):
    with pytest.raises(ConfigError, match=text):
        config(tmp_path, **settings)
