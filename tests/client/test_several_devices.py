"""A site with several devices sends what it sends with one of them: equal numbers, equal bits."""

import threading

import numpy as np
import pytest
import torch
from federation import Network, config, federate
from own_problem import SETTINGS, write_problem

from client.privacy.example_differences import example_differences
from client.site import replica_host
from dandelion.engines.local import contexts_of, merge_requests
from shared.base.errors import ConfigError, DivergedError
from shared.devices import names
from shared.features import cut
from shared.randomness.streams import direction_keys
from shared.replica import replica
from shared.replica.replica import Replica
from shared.training.oracle import Oracle
from shared.training.validate import configure

PAIR = {"num_clients": 2, "num_rounds": 2, "queries": 4, "eval_interval": 0}
CASES = {
    "forward": {},
    "two-point": {"estimator": "two-point", "device": "cpu,cpu,cpu"},
    "one query": {"estimator": "two-point", "queries": 1},
    "more threads": {"threads": 2, "kernels": "torch"},
    "fresh batches": {"query_data": "fresh"},
    "all examples": {"zo_batch_size": 0, "max_samples": 1, "block_size": 128},
    "own keys, local steps": {"seed_schedule": "independent", "local_steps": 3},
    "batched": {"directions": "lowrank", "queries": 5, "parallel_queries": 2},
    "batched, two-point": {"estimator": "two-point", "parallel_queries": 2},
    "batched, all examples": {
        "parallel_queries": 2,
        "zo_batch_size": 0,
        "max_samples": 1,
        "block_size": 128,
    },
    "calibrate": {"mode": "calibrate", "bp_interval": 2},
    "instruct": {"mode": "instruct", "bp_interval": 2},
    "guidance reuse": {"mode": "instruct", "bp_interval": 2, "guidance": "reuse"},
    "gaussian": {"directions": "gaussian"},
    "hadamard": {"directions": "hadamard", "scope": "bias"},
    "adam": {"optimizer": "adam", "learning_rate": 1e-3},
    "bfloat16": {"dtype": "bfloat16", "eps": 0.01, "local_steps": 2},
    "cut": {"scope": "last:1"},
    "cut, fresh": {"scope": "last:1", "query_data": "fresh"},
    "cut, batched": {"scope": "last:1", "query_data": "fresh", "parallel_queries": 2},
    "cached prefix": {"scope": "head", "keep_memory": 0, "keep_disk": 0},
    "stale": {"staleness": 1, "num_rounds": 3},
}


@pytest.fixture
def passes(monkeypatch):
    """Threads that have evaluated a loss, by the device's oracle."""
    seen, evaluate = {}, Oracle._evaluate

    def noted(self, measure, rows):
        seen.setdefault(id(self), set()).add(threading.get_ident())
        return evaluate(self, measure, rows)

    monkeypatch.setattr(Oracle, "_evaluate", noted)
    return seen


@pytest.mark.parametrize("name", CASES)
def test_several_devices_give_the_ledger_of_one(tmp_path, name):
    changes = {"device": "cpu,cpu", **PAIR, **CASES[name]}
    several = federate(config(tmp_path, "several", **changes))
    one = federate(config(tmp_path, "one", **{**changes, "device": "cpu"}))
    assert several.entries == one.entries
    assert several.digest == one.digest
    assert len(set(one.rows["entries"])) > 1


def test_each_device_has_a_thread_and_a_replica_of_its_own(tmp_path, passes):
    federate(config(tmp_path, device="cpu,cpu,cpu", **PAIR))
    (host,) = replica_host._hosts.values()
    first = host._oracle
    own = [first, *(helper.worker for helper in first._helpers)]
    assert len({oracle.replica.model.flat.data_ptr() for oracle in own}) == 3
    assert host.hello({"partition-id": 0, "num-partitions": 2}).device == "cpu, cpu, cpu"
    threads = [passes[id(oracle)] for oracle in own]
    assert threads[0] == {threading.get_ident()}
    assert len(set.union(*threads)) == 3
    assert all(not helper.worker.replica.state() for helper in first._helpers)


def test_a_problem_of_ones_own_has_a_module_on_each_device(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    app = write_problem(tmp_path, "cards_problem")
    given = {**SETTINGS, "app": app, "output-dir": str(tmp_path), "num-rounds": 2}
    several, one = (
        federate(configure({**given, "run-name": f"{number}", "device": device}))
        for number, device in enumerate(("cpu,cpu", "cpu"))
    )
    assert several.entries == one.entries


def test_merged_sites_share_out_their_passes(tmp_path):
    def merged(name, **changes):
        chosen = config(tmp_path, name, merge_clients=True, **PAIR, **changes)
        grid = Network(chosen)
        grid._before = merge_requests(contexts_of(chosen))
        return federate(chosen, grid)

    several, one = merged("several", device="cpu,cpu"), merged("one")
    assert several.entries == one.entries


@pytest.mark.parametrize("estimator", ["forward", "two-point"])
def test_differences_of_single_examples_are_shared_out(tmp_path, estimator):
    rows, numbers = torch.arange(96).view(3, 32) % 256, []
    for device in ("cpu", "cpu,cpu"):
        chosen = config(tmp_path, device=device, estimator=estimator)
        keys = direction_keys(1, 1, 0, 0, 4)
        numbers.append(example_differences(Oracle.of(chosen), chosen, rows, keys))
    np.testing.assert_array_equal(*numbers)
    assert numbers[0].shape == (4, 3)
    assert numbers[0].any()


def test_a_replica_whose_bits_differ_is_seen(tmp_path, monkeypatch):
    oracle = Oracle.of(config(tmp_path, device="cpu,cpu"))
    follow = Replica.follow_

    def spoil(self, other):
        self.model.flat[7] += 1e-3
        self.set_round(other.round)
        follow(self, other)

    monkeypatch.setattr(Replica, "follow_", spoil)
    measured = oracle.share_out(2, lambda own, numbers: [own.replica.digest()], lambda: [])
    assert measured == [oracle.replica.digest()] * 2  # healed: the bits were copied

    monkeypatch.setattr(replica, "digest_of", lambda flat: b"%016x" % flat.data_ptr())
    oracle.replica.set_round(1)
    with pytest.raises(DivergedError, match=r"round 1: digest .* expected, this replica has"):
        oracle.share_out(2, lambda own, numbers: [0], lambda: [])


def test_a_base_model_that_differs_is_seen(tmp_path, monkeypatch):
    oracle, on = Oracle.of(config(tmp_path, device="cpu,cpu")), Oracle._on.__func__

    def other_seed(cls, device, chosen, lender=None):
        return on(cls, device, chosen.replace(seed=99), lender)

    monkeypatch.setattr(Oracle, "_on", classmethod(other_seed))
    with pytest.raises(DivergedError, match=r"base model .* expected on cpu too, got"):
        oracle.share_out(2, lambda own, numbers: [0], lambda: [])


def test_an_error_of_one_device_is_raised_when_all_are_at_rest(tmp_path):
    oracle, done = Oracle.of(config(tmp_path, device="cpu,cpu")), []

    def work(own, numbers):
        if own is oracle:
            raise ValueError("first")
        done.append(own.loss(torch.arange(64).view(2, 32)))
        return [0] * len(numbers)

    with pytest.raises(ValueError, match="first"):
        oracle.share_out(4, work, lambda: [])
    assert len(done) == 1


def test_activations_of_a_step_that_are_shared_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(cut, "MIB", 64)
    chosen = config(tmp_path, device="cpu,cpu", scope="last:1", keep_memory=10)
    oracle = Oracle.of(chosen)
    rows = torch.arange(32 * 8).view(8, 32) % 256
    with pytest.raises(ConfigError, match=r"keep-memory of at least [0-9]+ MiB .* got 10$"):
        oracle.share_out(2, lambda own, numbers: [own.loss(rows)], lambda: [rows])


def losses_on(folder, device):
    """Losses (8, 6) at eight points, six times each: passes are captured from the third on."""
    oracle = Oracle.of(config(folder, device=device))
    rows, keys = torch.arange(128).view(4, 32) % 256, direction_keys(1, 1, 0, 0, 8)

    def work(own, numbers):
        measured = []
        for number in numbers:
            with own.perturber.at(keys[number], 0.01):
                measured.append([own.loss(rows) for _ in range(6)])
        return measured

    return np.array(oracle.share_out(8, work, lambda: []))


@pytest.mark.gpu
def test_threads_on_one_card_give_the_losses_of_one(tmp_path, monkeypatch):
    """As with two cards, but for the second card: the setting itself refuses a card named twice."""
    one = losses_on(tmp_path, "cuda:0")
    monkeypatch.setattr(names, "_find_fault", lambda devices: "")
    np.testing.assert_array_equal(losses_on(tmp_path, "cuda:0,0"), one)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_cards_give_the_losses_of_one(tmp_path):
    one = losses_on(tmp_path, "cuda:0")
    np.testing.assert_array_equal(losses_on(tmp_path, "cuda:0,1"), one)
    np.testing.assert_array_equal(losses_on(tmp_path, "cuda:1,0"), one)
