"""The strategy in a ServerApp of somebody else: its contract, its bits, and faults of clients."""

import math

import numpy as np
import pytest
import torch
from app_federation import (
    ManyApps,
    arrays_of,
    client_app,
    examples,
    forget_processes,
    small_net,
    start_net,
)
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

import shared.base.files
from dandelion import ZerothOrder, rebuild_from_ledger
from shared.apps.records import FROZEN, OURS, RUN, SNAPSHOT
from shared.base.errors import ConfigError, DivergedError, LedgerError, StalledError
from shared.config.schema import Config
from shared.protocol.messages import Measured, decode_reply, decode_request, encode_reply


@pytest.fixture(autouse=True)
def _no_replica_in_memory():
    forget_processes()
    yield
    forget_processes()


def strategy_of(**parameters):
    return ZerothOrder(model=start_net(), queries=4, lr=0.3, **parameters)


def run(strategy, nodes=None, rounds=3, grid=None, **arguments):
    grid = grid or (nodes or ManyApps()).grid()
    return strategy.start(grid, arrays_of(start_net()), rounds, 5.0, **arguments)


def equal(one, other):
    one, other = one.to_torch_state_dict(), other.to_torch_state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def change_reply(**values):
    """A function that changes fields of a client's measurement, as a liar would."""

    def change(reply):
        ours = reply.content[OURS]
        measured = decode_reply(ours["reply"])
        if isinstance(measured, Measured) and len(measured.differences):
            ours["reply"] = encode_reply(Measured(**{**vars(measured), **values}))
        return reply

    return change


# --- Flower's contract


def test_the_result_is_filled_and_the_loss_falls():
    strategy, seen = strategy_of(), []

    def evaluate_fn(number, arrays):
        seen.append(arrays)
        return MetricRecord({"round": number})

    result = run(strategy, rounds=40, evaluate_fn=evaluate_fn)
    assert isinstance(strategy, Strategy)
    assert isinstance(result, Result)
    rounds = list(range(1, 41))
    assert list(result.train_metrics_clientapp) == rounds
    assert list(result.evaluate_metrics_clientapp) == rounds
    assert list(result.evaluate_metrics_serverapp) == [0, *rounds]
    losses = [each["train_loss"] for each in result.train_metrics_clientapp.values()]
    assert losses[-1] < 0.7 * losses[0]
    assert result.evaluate_metrics_clientapp[40]["accuracy"] > 0.7
    assert equal(result.arrays, seen[-1])
    assert strategy.refusals == []
    first = result.train_metrics_clientapp[1]
    assert (first["clients"], first["learning-rate"]) == (4, 0.3)


def test_exact_slopes_are_the_limit_of_differences():
    def arrays(estimator, **more):
        forget_processes()
        strategy = ZerothOrder(
            model=start_net(), queries=32, lr=0.05, estimator=estimator, batches=0, **more
        )
        result = run(strategy, rounds=5)
        assert strategy.refusals == []
        return result.arrays.to_torch_state_dict()

    exact, differences = arrays("exact"), arrays("two-point", eps=1e-3)
    moved = {
        name: (exact[name] - start).abs().max() for name, start in start_net().state_dict().items()
    }
    for name, value in exact.items():
        torch.testing.assert_close(value, differences[name], rtol=0, atol=1e-2 * float(moved[name]))


def test_no_round_returns_the_initial_arrays():
    assert equal(run(strategy_of(), rounds=0).arrays, arrays_of(start_net()))


def test_flowers_own_loop_gives_the_same_model():
    strategy, own = strategy_of(), strategy_of()
    result = Strategy.start(strategy, ManyApps().grid(), arrays_of(start_net()), 3, 5.0)
    strategy.close()
    forget_processes()
    assert equal(result.arrays, run(own).arrays)


def test_configs_reach_the_clients_and_those_of_the_caller_stay():
    nodes, train, evaluate = ManyApps(), ConfigRecord({"a": 1}), ConfigRecord({"b": 2})
    run(strategy_of(), nodes, 2, train_config=train, evaluate_config=evaluate)
    configs = [dict(each.content["config"]) for each in nodes.received]
    assert configs.count({"a": 1, "server-round": 2}) == 4
    assert configs.count({"b": 2, "server-round": 1}) == 4
    assert (dict(train), dict(evaluate)) == ({"a": 1}, {"b": 2})


def test_fractions_draw_so_many_nodes():
    nodes = ManyApps()
    strategy = strategy_of(fraction_train=0.5, fraction_evaluate=0.0, min_evaluate_nodes=0)
    result = run(strategy, nodes, 6)
    assert len(nodes.received) == 12
    assert len({each.metadata.dst_node_id for each in nodes.received}) > 2
    assert result.evaluate_metrics_clientapp == {}


def test_metrics_are_averaged_by_a_function_of_ones_own():
    def count(contents, weight_key):
        assert weight_key == "num-examples"
        return MetricRecord({"contents": len(contents)})

    strategy = strategy_of(train_metrics_aggr_fn=count, evaluate_metrics_aggr_fn=count)
    result = run(strategy, rounds=1)
    assert result.train_metrics_clientapp[1]["contents"] == 4
    assert dict(result.evaluate_metrics_clientapp[1]) == {"contents": 4}


def test_defaults_are_those_of_a_run():
    strategy, config = ZerothOrder(model=small_net()), Config()
    for where, name in (
        (config.zo, "queries"), (config.zo, "eps"), (config.zo, "directions"),
        (config.zo, "seed_schedule"), (config.training, "seed"), (config.optimizer, "movement"),
        (config.federation, "aggregation"), (config.federation, "max_share"),
        (config.federation, "min_replies"), (config.federation, "max_skipped_rounds"),
    ):  # fmt: skip
        assert getattr(strategy, name) == getattr(where, name), name


# --- bits and bytes


@pytest.mark.parametrize(
    "parameters",
    [
        {}, {"optimizer": "adam"}, {"options": {"momentum": 0.9}}, {"seed_schedule": "independent"},
        {"estimator": "forward", "seed_schedule": "independent"}, {"directions": "lowrank"},
        {"estimator": "exact"},
        {"aggregation": "median"}, {"batches": 0},
    ],
)  # fmt: skip
def test_clients_that_start_a_process_for_each_message_follow_to_the_bit(parameters, tmp_path):
    nodes, fresh = ManyApps(), ManyApps()
    fresh.fresh = True
    path = tmp_path / "run.sqlite"
    first = run(strategy_of(**parameters), nodes)
    forget_processes()
    strategy = strategy_of(ledger=path, **parameters)
    second = run(strategy, fresh)
    assert strategy.refusals == []
    assert equal(first.arrays, second.arrays)
    module = rebuild_from_ledger(path, start_net(), arrays_of(start_net()))
    assert equal(arrays_of(module), second.arrays)


def test_a_model_is_sent_once_and_scalars_after_it():
    nodes = ManyApps()
    result = run(strategy_of(), nodes, 4)
    with_model = [each for each in nodes.received if SNAPSHOT in each.content]
    assert len(with_model) == 4
    assert all(FROZEN in each.content and RUN in each.content[OURS] for each in with_model)
    later = [result.train_metrics_clientapp[each] for each in (2, 3, 4)]
    assert max(each["bytes-down"] for each in later) < 4 * 400
    assert max(each["bytes-up"] for each in later) < 4 * 400


def test_clients_that_build_the_same_model_are_sent_none():
    nodes, strategy = ManyApps(), strategy_of(send_arrays=False)
    nodes.default = client_app(build=start_net)
    assert equal(run(strategy, nodes).arrays, run(strategy_of()).arrays)
    assert not [each for each in nodes.received if SNAPSHOT in each.content]


def test_clients_that_build_another_are_sent_it_after_all():
    nodes, strategy = ManyApps(), strategy_of(send_arrays=False)
    assert equal(run(strategy, nodes).arrays, run(strategy_of()).arrays)
    assert len([each for each in nodes.received if SNAPSHOT in each.content]) == 4
    assert strategy.refusals == []


def test_frozen_parameters_and_buffers_stay_as_they_were():
    begin, end = arrays_of(start_net()), run(strategy_of()).arrays
    before, after = begin.to_torch_state_dict(), end.to_torch_state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}


# --- clients that fail


def test_a_client_that_lost_its_state_is_sent_a_model_in_the_same_round():
    nodes, grid, strategy = ManyApps(), None, strategy_of()
    grid = nodes.grid()

    def lose(number, arrays):
        if number == 2:
            forget_processes()
            nodes.contexts[3].state.clear()

    result = run(strategy, grid=grid, rounds=4, evaluate_fn=lose)
    assert strategy.refusals == []
    assert result.train_metrics_clientapp[3]["clients"] == 4
    to_it = [each for each in nodes.received if each.metadata.dst_node_id == 3]
    assert len([each for each in to_it if SNAPSHOT in each.content]) == 2


def test_a_late_joiner_starts_at_the_current_round():
    nodes, strategy = ManyApps(), strategy_of()
    grid = nodes.grid()
    grid.absent = {5}

    def join(number, arrays):
        grid.absent = {5} if number < 3 else set()

    nodes.fresh = True
    result = run(strategy, grid=grid, rounds=5, evaluate_fn=join)
    clients = [each["clients"] for each in result.train_metrics_clientapp.values()]
    assert clients == [3, 3, 3, 4, 4]
    (sent,) = [m for m in nodes.received if m.metadata.dst_node_id == 5 and SNAPSHOT in m.content]
    assert decode_request(sent.content[OURS]["request"]).round == 4


def test_a_client_whose_replies_are_lost_is_named_and_catches_up_by_entries():
    nodes, strategy = ManyApps(), strategy_of(fraction_evaluate=0.0, min_evaluate_nodes=0)
    grid = nodes.grid()

    def lose(number, arrays):
        grid.lost = {4} if number in (1, 2) else frozenset()

    result = run(strategy, grid=grid, rounds=4, evaluate_fn=lose)
    assert [(r.round, r.site, r.reason) for r in strategy.refusals] == [
        (2, "2", "no answer"), (3, "2", "no answer"),
    ]  # fmt: skip
    assert result.train_metrics_clientapp[4]["clients"] == 4
    last = [m for m in nodes.received if m.metadata.dst_node_id == 4][-1]
    assert SNAPSHOT not in last.content
    assert len(decode_request(last.content[OURS]["request"]).entries) == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"differences": np.full(4, math.nan, np.float32)}, "not finite"),
        ({"differences": np.full(4, 1e8, np.float32)}, "out of proportion"),
        ({"differences": np.zeros(3, np.float32)}, "wrong length"),
        ({"round": 7}, "wrong round"),
        ({"digest": bytes(16)}, "wrong digest"),
        ({"examples": 10**6}, "other metrics"),
        ({"loss": math.inf}, "not finite"),
    ],
)
def test_a_lying_client_is_named_and_changes_nothing(change, reason):
    honest, liars = ManyApps(), ManyApps()
    liars.change[3] = change_reply(**change)
    strategy = strategy_of()
    result = run(strategy, liars)
    assert {(each.site, each.reason) for each in strategy.refusals} == {("1", reason)}
    grid = honest.grid()
    grid.absent = {3}
    assert equal(result.arrays, run(strategy_of(), grid=grid).arrays)


def test_a_client_whose_loss_is_not_finite_says_so():
    nodes, strategy = ManyApps(), strategy_of()
    nodes.apps[2] = client_app(loss=lambda module, batch: module(batch[0]).sum() * math.nan)
    result = run(strategy, nodes, 1)
    assert result.train_metrics_clientapp[1]["clients"] == 3
    ((site, detail),) = [(each.site, each.detail) for each in strategy.refusals]
    assert site == "node 2"
    assert "finite number expected, got nan" in detail


def test_a_run_without_valid_replies_stops_and_says_why():
    nodes = ManyApps()
    nodes.silent = {2, 3, 4, 5}
    with pytest.raises(StalledError, match=r"skipped 5 times in a row.*ConnectionError: gone"):
        run(strategy_of(), nodes, 9)


def test_a_skipped_round_is_measured_again():
    nodes, strategy = ManyApps(), strategy_of(fraction_evaluate=0.0, min_evaluate_nodes=0)
    nodes.silent = {2, 3, 4, 5}
    arrays = run(strategy_of()).arrays

    def heal(number, arrays):
        nodes.silent = set() if number else nodes.silent

    result = run(strategy, nodes, 4, evaluate_fn=heal)
    assert list(result.train_metrics_clientapp) == [2, 3, 4]
    assert equal(result.arrays, arrays)


def test_a_client_with_another_version_is_refused_by_name(monkeypatch):
    import client.handlers.client_replica as at_client

    monkeypatch.setattr(at_client, "code_digest", lambda: bytes(16))
    strategy = strategy_of(max_skipped_rounds=1)
    with pytest.raises(StalledError, match="another version of dandelion"):
        run(strategy)
    assert shared.base.files.code_digest() != bytes(16)


def test_a_client_with_another_model_is_refused_by_name():
    nodes, strategy = ManyApps(), strategy_of()
    nodes.apps[2] = client_app(build=lambda: nn.Linear(4, 3))
    assert run(strategy, nodes, 1).train_metrics_clientapp[1]["clients"] == 3
    assert "this client's model is not that of the server" in strategy.refusals[0].detail


def test_a_client_of_another_handler_is_refused_by_name():
    nodes, strategy = ManyApps(), strategy_of()

    def stock(message, context):
        reply = client_app()(message, context)
        del reply.content[OURS]
        return reply

    nodes.apps[2] = stock
    assert run(strategy, nodes, 1).train_metrics_clientapp[1]["clients"] == 3
    assert "zeroth_order_handler" in strategy.refusals[0].detail


def test_two_nodes_of_one_name_count_once():
    nodes, strategy = ManyApps(), strategy_of()
    nodes.contexts[5].node_config["partition-id"] = 0
    assert run(strategy, nodes, 1).train_metrics_clientapp[1]["clients"] == 3
    assert (strategy.refusals[0].site, strategy.refusals[0].reason) == ("0", "duplicate")


# --- bad input


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"queries": 0}, "queries"), ({"eps": 0.0}, "eps"), ({"lr": -1.0}, "learning-rate"),
        ({"optimizer": "sdg"}, "sdg"), ({"directions": "x"}, "unknown directions"),
        ({"fraction_train": 1.5}, "fraction-train"), ({"batches": -1}, "batches"),
        ({"min_train_nodes": "two"}, "min-train-nodes"), ({"estimator": "backward"}, "estimator"),
        ({"options": {"momemtum": 0.9}}, "momemtum"), ({"options": {"queries": 3}}, "parameter of"),
        ({"optimizer": "adam", "lr": None}, "adam"), ({"ledger": 3}, "a path or None"),
        ({"model": nn.Sequential()}, "requires_grad"), ({"model": "gpt2"}, "torch.nn.Module"),
        ({"model": nn.Linear(2, 2).double()}, "float32 or bfloat16"),
    ],
)  # fmt: skip
def test_a_parameter_that_cannot_be_is_refused(parameters, message):
    with pytest.raises(ConfigError, match=message):
        ZerothOrder(**{"model": small_net(), "lr": 0.1, **parameters})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("0.weight"), "'0.weight' is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "'extra' is not in the model"),
        (lambda state: state.update({"0.bias": torch.zeros(5)}), r"\(6,\) expected, got .*\(5,\)"),
        (lambda state: state.update({"0.bias": torch.full((6,), math.nan)}), "not finite"),
    ],
)
def test_arrays_of_another_model_are_refused(change, message):
    state = dict(start_net().state_dict())
    change(state)
    with pytest.raises(ConfigError, match=message):
        strategy_of().start(ManyApps().grid(), ArrayRecord(state), 1)


def test_no_clients_is_an_error_after_the_wait():
    with pytest.raises(StalledError, match="2 nodes needed, 0 are connected"):
        run(strategy_of(wait_timeout=0.01), ManyApps(0))


def test_arrays_that_somebody_changed_between_rounds_are_refused():
    strategy, grid = strategy_of(), ManyApps().grid()
    arrays = arrays_of(start_net())
    strategy.aggregate_train(
        1, grid.send_and_receive(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    )
    with pytest.raises(ConfigError, match="is not as the strategy returned it"):
        strategy.configure_train(2, arrays, ConfigRecord(), grid)
    strategy.close()


@pytest.mark.parametrize("arguments", [{"num_rounds": -1}, {"timeout": 0}])
def test_an_argument_out_of_range_is_refused(arguments):
    with pytest.raises(ConfigError, match="expected"):
        strategy_of().start(ManyApps().grid(), arrays_of(start_net()), **arguments)


# --- the ledger


def test_a_ledger_is_never_overwritten_and_gives_every_round(tmp_path):
    path, seen = tmp_path / "run.sqlite", []
    strategy = strategy_of(ledger=str(path))
    run(strategy, evaluate_fn=lambda number, arrays: seen.append(arrays))
    for number, arrays in enumerate(seen):
        module = rebuild_from_ledger(path, start_net(), arrays_of(start_net()), number)
        assert equal(arrays_of(module), arrays)
    with pytest.raises(LedgerError, match="there is a ledger already"):
        run(strategy)
    with pytest.raises(ConfigError, match="from 0 to 3 expected, got 4"):
        rebuild_from_ledger(path, start_net(), arrays_of(start_net()), 4)
    with pytest.raises(ConfigError, match="the run began with other arrays"):
        rebuild_from_ledger(path, start_net(), arrays_of(nn.Sequential(*small_net())))


def test_a_recorded_digest_that_does_not_fit_is_an_error(tmp_path):
    import sqlite3
    from contextlib import closing

    path = tmp_path / "run.sqlite"
    run(strategy_of(ledger=path))
    with closing(sqlite3.connect(path)) as file:
        file.execute("UPDATE digests SET digest = zeroblob(16) WHERE round = 2")
        file.commit()
    with pytest.raises(DivergedError, match="round 2"):
        rebuild_from_ledger(path, start_net(), arrays_of(start_net()))


def test_the_data_of_a_round_is_the_same_if_it_is_measured_again():
    first, second = (run(strategy_of(), rounds=2) for _ in range(2))
    assert equal(first.arrays, second.arrays)
    assert examples(ManyApps().contexts[2]).dataset
