"""Handlers of a ClientApp: any batch, any loss, any data, and what they refuse."""

import re

import pytest
import torch
from app_federation import ManyApps, arrays_of, client_app, forget_processes, loss, start_net
from flwr.app import ConfigRecord, Context, RecordDict
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from client.handlers.client_replica import ClientState
from client.handlers.handlers import site_in
from client.handlers.measurement import examples_in, mean_loss, to_device
from dandelion import ZerothOrder
from shared.apps.app_run import AppRun
from shared.apps.records import OURS, pack_bytes, pack_tensors, unpack_bytes, unpack_tensors
from shared.base.errors import DataError, WireError


@pytest.fixture(autouse=True)
def _no_replica_in_memory():
    forget_processes()
    yield
    forget_processes()


def first_refusal(**parts):
    """What the server is told of the only client whose app has these parts."""
    nodes = ManyApps(3)
    nodes.apps[2] = client_app(**parts)
    strategy = ZerothOrder(model=start_net(), queries=2, lr=0.1, estimator="forward")
    strategy.start(nodes.grid(), arrays_of(start_net()), 1, 5.0)
    return strategy.refusals[0].detail


def write_parameters(module, batch):
    with torch.no_grad():
        next(module.parameters()).add_(1.0)
    return loss(module, batch)


def train_mode(module, batch):
    module.train()
    return loss(module, batch)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda module, batch: 1.0, r"a tensor \(n,\) or \(\) expected, got float"),
        (lambda module, batch: module(batch[0]), r"expected, got \(16, 3\)"),
        (write_parameters, "wrote the trained parameters"),
        (train_mode, "wrote the untrained tensor '1.num_batches_tracked'"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused(wrong, message):
    assert re.search(message, first_refusal(loss=wrong))


def test_dropout_that_a_loss_switches_on_is_refused():
    def build():
        return nn.Sequential(nn.Linear(4, 3), nn.Dropout())

    nodes = ManyApps(2)
    nodes.default = client_app(build=build, loss=train_mode)
    net = build()
    strategy = ZerothOrder(model=net, queries=2, lr=0.1, max_skipped_rounds=9)
    strategy.fraction_evaluate, strategy.min_evaluate_nodes = 0.0, 0
    strategy.start(nodes.grid(), arrays_of(net), 1, 5.0)
    assert "left the module in train mode" in strategy.refusals[0].detail


def test_a_loss_without_a_gradient_is_refused_where_slopes_are_backpropagated():
    nodes = ManyApps(2)
    nodes.default = client_app(loss=lambda module, batch: loss(module, batch).detach())
    strategy = ZerothOrder(model=start_net(), queries=2, lr=0.1, estimator="exact")
    strategy.max_skipped_rounds = 9
    strategy.start(nodes.grid(), arrays_of(start_net()), 1, 5.0)
    assert "use estimator forward or two-point" in strategy.refusals[0].detail


def test_data_without_a_batch_is_refused():
    assert "the data gives none" in first_refusal(data=lambda context: [])


def test_a_mean_and_the_losses_of_examples_are_the_same():
    torch.manual_seed(0)
    batches = [(torch.randn(n, 4), torch.zeros(n).long()) for n in (3, 5)]
    net, sizes = nn.Linear(4, 3), [3, 5]
    each = mean_loss(loss, net, batches, sizes)
    mean = mean_loss(lambda m, b: loss(m, b).mean(), net, batches, sizes)
    whole = (torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches]))
    assert each == pytest.approx(mean, rel=1e-6)
    assert each == pytest.approx(float(loss(net, whole).mean().detach()), rel=1e-6)


def test_a_loss_that_is_infinite_names_its_batch():
    with pytest.raises(DataError, match="loss of batch 1: a finite number expected, got inf"):
        mean_loss(lambda m, b: b, nn.Linear(1, 1), [torch.ones(2), torch.ones(2) / 0], [2, 2])


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.zeros(5, 2), 5), ((torch.zeros(4, 2), torch.zeros(4)), 4),
        ({"input_ids": torch.zeros(3, 7), "labels": torch.zeros(3)}, 3), (["a", "b"], 2),
        (torch.tensor(1.0), 1), (object(), 1), ({}, 1),
    ],
)  # fmt: skip
def test_examples_of_any_batch_are_counted(batch, count):
    assert examples_in(batch) == count


def test_tensors_within_a_batch_are_moved_and_the_rest_stays():
    batch = {"x": [torch.ones(2), "text"], "y": (torch.ones(1), 3)}
    moved = to_device(batch, torch.device("meta"))
    assert moved["x"][0].is_meta
    assert moved["y"][0].is_meta
    assert (moved["x"][1], moved["y"][1], type(moved["y"])) == ("text", 3, tuple)


def test_shuffled_batches_are_those_of_run_round_and_site():
    """A round that is requested again measures the same; another round, other batches."""
    seen = []

    def note(module, batch):
        seen.append(batch[1].tolist())
        return loss(module, (torch.zeros(len(batch[0]), 4), batch[1] % 3))

    def data(context):
        return DataLoader(TensorDataset(torch.zeros(32, 4), torch.arange(32)), 4, shuffle=True)

    def batches(rounds):
        seen.clear()
        forget_processes()
        nodes = ManyApps(2)
        nodes.default = client_app(loss=note, data=data)
        strategy = ZerothOrder(model=start_net(), queries=1, lr=0.1)
        strategy.start(nodes.grid(), arrays_of(start_net()), rounds, 5.0)
        return list(seen)

    torch.manual_seed(1)
    first = batches(2)
    torch.manual_seed(2)
    assert batches(2) == first
    assert len(set(map(tuple, first))) == 4  # two sites, two rounds; both signs on the same batch


def test_the_weight_of_a_client_is_its_data_set():
    nodes = ManyApps(2)
    strategy = ZerothOrder(model=start_net(), queries=1, lr=0.1, batches=1, max_share=1.0)
    seen = []
    strategy.train_metrics_aggr_fn = lambda contents, key: (
        seen.extend(each["metrics"][key] for each in contents) or contents[0]["metrics"]
    )
    strategy.start(nodes.grid(), arrays_of(start_net()), 1, 5.0)
    assert seen == [64, 64]


def test_another_weight_key_reaches_the_clients():
    nodes = ManyApps(2)
    strategy = ZerothOrder(model=start_net(), queries=1, lr=0.1, weighted_by_key="weight")
    strategy.fraction_evaluate, strategy.min_evaluate_nodes = 0.0, 0
    result = strategy.start(nodes.grid(), arrays_of(start_net()), 1, 5.0)
    assert strategy.refusals == []
    assert result.train_metrics_clientapp[1]["clients"] == 2


def test_a_node_without_a_name_is_named_by_flower():
    node = Context(run_id=1, node_id=77, node_config={}, state=RecordDict(), run_config={})
    assert site_in(node).name == "node 77"
    node.node_config["site"] = "Uppsala"
    assert site_in(node).name == "Uppsala"


def test_a_state_too_large_for_flower_is_not_kept(caplog, monkeypatch):
    import client.handlers.client_replica as at_client

    monkeypatch.setattr(at_client, "STATE_MOST", 10)
    state = RecordDict()
    ClientState(b"run", "{}", bytes(11)).write(state, 1)
    assert len(state) == 0
    assert "kept in memory alone" in caplog.text


@pytest.mark.parametrize("damage", [{"name": "zz"}, {"run": "{}"}, {}])
def test_a_damaged_state_counts_as_none(damage):
    state = RecordDict({OURS: ConfigRecord(damage)})
    assert ClientState.read(state) == ClientState()


def test_bytes_and_tensors_survive_their_records():
    content = RecordDict({"a": pack_bytes(b"\0" * 99, compress=True), "b": pack_bytes(b"xy")})
    assert unpack_bytes(content, "a") == b"\0" * 99
    assert unpack_bytes(content, "b") == b"xy"
    tensors = {"i": torch.tensor(3), "h": torch.ones(2, 3).bfloat16(), "e": torch.zeros(0, 2)}
    content["t"] = pack_tensors(tensors)
    read = unpack_tensors(content, "t")
    assert all(torch.equal(read[n], t) and read[n].dtype is t.dtype for n, t in tensors.items())


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"settings": 1}', "x" * 70_000,
     '{"settings": {"queries": 0}, "batches": 1, "weight_key": "n", "initial": "", "frozen": ""}'],
)  # fmt: skip
def test_settings_that_are_none_are_refused(text):
    with pytest.raises(WireError):
        AppRun.decode(text)
