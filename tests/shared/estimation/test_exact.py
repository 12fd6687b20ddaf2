"""Exact slopes by backpropagation: autograd's, the limit of differences, and who measures them."""

import numpy as np
import pytest
import torch
from federation import config, ledger_of
from fleet import federate
from torch import nn

from client.site.zeroth_order import Queries
from server.ledger.run_folder import open_run
from shared.base.errors import ConfigError, DataError
from shared.base.flat import Layout, flatten
from shared.config.schema import Config
from shared.directions import DIRECTIONS
from shared.estimation import exact
from shared.estimation.exact import exact_differences, gradient_of
from shared.modes.estimators import cost, estimator_at, evaluations_of
from shared.modes.mode import MEASURE
from shared.protocol.site_id import SiteId
from shared.randomness.streams import direction_keys
from shared.training.corpus import Corpus
from shared.training.oracle import Oracle
from shared.training.server_choices import resolve_choices

EXACT = {"estimator": "exact", "queries": 8, "zo_batch_size": 4}
SCOPES = ("full", "last:1", "bias", pytest.param("lora", marks=pytest.mark.slow), "mask:0.05")


def measured(c, oracle, can_backpropagate=True, round_=1):
    """One site's numbers of a round, and the losses that it reports."""
    examples = Corpus.of(c, oracle.language_model).shard(0, c.federation.num_clients)
    queries = Queries(SiteId(1, "a"), examples, c, round_, [], can_backpropagate)
    return queries.measure(oracle, 0.1, None), queries


@pytest.mark.parametrize("scope", SCOPES)
def test_slopes_are_the_products_of_directions_and_autograds_gradient(tmp_path, scope):
    c = resolve_choices(config(tmp_path, scope=scope, **EXACT))
    oracle = Oracle.of(c)
    numbers, queries = measured(c, oracle)
    rows, model = queries.batch(0), oracle.replica.model
    named = dict(model.module.named_parameters())
    loss = oracle.task.loss(model.module, rows)
    trained = [named[span.name] for span in model.layout.tensors]
    gradients = torch.autograd.grad(loss, trained)
    for key, number in zip(queries.keys(0), numbers, strict=True):
        z = torch.zeros_like(model.flat)
        oracle.replica.directions.add_to_(z, [key], [1.0])
        parts = zip(model.layout.views(z).values(), gradients, strict=True)
        slope = sum(float(a.double().flatten() @ b.double().flatten()) for a, b in parts)
        assert number / (2 * c.zo.eps) == pytest.approx(slope, rel=1e-5, abs=1e-7)
    assert queries.losses == [pytest.approx(float(loss.detach()), rel=1e-6)]


@pytest.mark.parametrize("directions", ["rademacher", "gaussian"])
def test_slopes_are_the_limit_of_two_sided_differences(tmp_path, directions):
    """The error falls with the square of eps, until losses in float32 are rounded too coarsely."""
    errors = []
    for eps in (0.004, 0.002, 0.001):
        c = config(tmp_path, directions=directions, eps=eps, **EXACT)
        oracle = Oracle.of(c)
        slopes, _ = measured(c, oracle)
        two = config(
            tmp_path, directions=directions, eps=eps, **{**EXACT, "estimator": "two-point"}
        )
        errors.append(np.abs(slopes - measured(two, oracle)[0]).max() / (2 * eps))
    scale = np.abs(slopes).max() / (2 * eps)
    assert errors[2] < 0.4 * errors[1] < 0.16 * errors[0]
    assert errors[2] < 2e-2 * scale


def test_a_site_that_cannot_backpropagate_measures_both_sides(tmp_path):
    c = config(tmp_path, **EXACT)
    oracle = Oracle.of(c)
    before = oracle.replica.digest()
    unable, queries = measured(c, oracle, can_backpropagate=False)
    plain = c.replace(estimator="two-point")
    expected, _ = measured(plain, oracle)
    assert unable.tolist() == expected.tolist()
    assert len(queries.losses) == 2 * c.zo.queries
    assert oracle.replica.digest() == before


@pytest.mark.parametrize("batch", [2, 0])
@pytest.mark.parametrize("step", ["plain", "auto"])
def test_a_federation_of_both_kinds_of_sites_learns_and_counts_what_each_has_cost(
    tmp_path, batch, step
):
    rate = {"learning_rate": 0.03} if step == "plain" else {"learning_rate": 0.0}
    queries = 64 if batch else 4
    chosen = {
        **EXACT,
        "queries": queries,
        "zo_batch_size": batch,
        "max_samples": 3,
        "step": step,
        **rate,
    }
    c = config(tmp_path, num_rounds=6, **chosen)
    result = federate(c, unable=(1,))
    with ledger_of(c) as ledger:
        assert [len(ledger.site_numbers(k)) for k in range(1, 7)] == [3] * 6
    more = 0
    if step == "auto":  # the last batch again; and the unable one's own, that it has no loss of
        more = (3 + 1) if batch else 1
    expected = 2 * 3 + 2 * queries + more
    assert result.forwards[3] == expected
    assert result.losses[-1] < result.losses[0] or not batch
    with open_run(config(tmp_path, num_rounds=6, resume=str(result.folder), **chosen)) as run:
        assert run.oracle.replica.digest().hex() == result.digest


@pytest.mark.parametrize("family", DIRECTIONS.names())
def test_slopes_in_parts_are_those_of_the_whole(family, monkeypatch):
    layout = Layout.of([("a", (40, 60)), ("b", (999,))])
    gradient = torch.randn(layout.size, generator=torch.Generator().manual_seed(0))
    layout.clear_padding_(gradient)
    keys, directions = direction_keys(3, 1, 0, 0, 5), DIRECTIONS[family](layout)
    whole = exact_differences(directions, keys, gradient, 0.1)
    monkeypatch.setattr(exact, "PART", 1024)
    np.testing.assert_allclose(exact_differences(directions, keys, gradient, 0.1), whole, rtol=1e-6)


def test_many_directions_cost_no_more_than_one():
    few, many = (Config({"estimator": "exact", "queries": q}) for q in (1, 1000))
    assert evaluations_of(few) == evaluations_of(many) == 3
    assert cost(many, MEASURE, 100) == 3
    assert cost(many, MEASURE, 100, can_backpropagate=False) == 2000
    assert estimator_at(many, can_backpropagate=False) == "two-point"


def test_bfloat16_has_them_too(tmp_path):
    c = config(tmp_path, dtype="bfloat16", **{**EXACT, "queries": 32})
    oracle = Oracle.of(c)
    numbers, _ = measured(c, oracle)
    plain = c.replace(dtype="float32")
    assert np.corrcoef(numbers, measured(plain, Oracle.of(plain))[0])[0, 1] > 0.99


@pytest.mark.gpu
@pytest.mark.parametrize("scope", ["full", "last:1"])
def test_a_card_has_the_slopes_of_a_cpu(tmp_path, scope):
    numbers = []
    for device in ("cpu", "cuda"):
        c = config(tmp_path, scope=scope, device=device, **EXACT)
        numbers.append(measured(c, Oracle.of(c))[0])
    np.testing.assert_allclose(*numbers, rtol=1e-3, atol=1e-3 * np.abs(numbers[0]).max())


def test_a_parameter_that_a_loss_does_not_use_has_slope_zero():
    model = flatten(nn.ModuleDict({"a": nn.Linear(3, 1), "b": nn.Linear(3, 1)}))
    gradient = gradient_of(model, model.module["a"](torch.ones(3)).sum())
    views = model.layout.views(gradient)
    assert views["a.weight"].tolist() == [[1.0, 1.0, 1.0]]
    assert not views["b.weight"].any()


def test_a_loss_without_a_gradient_is_refused():
    model = flatten(nn.Linear(3, 1))
    with pytest.raises(DataError, match="detached"):
        gradient_of(model, model.module(torch.ones(3)).sum().detach())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parallel_queries": 2}, "parallel-queries = 2 with estimator 'exact'"),
        ({"merge_clients": True}, "merge-clients = True with estimator 'exact'"),
        ({"query_data": "fresh"}, "query-data = 'fresh' with estimator 'exact'"),
        ({"mode": "instruct"}, "mode 'instruct' with estimator 'exact'"),
        ({"objective": "margin"}, "only the loss has exact slopes"),
        ({"device": "cpu,cpu"}, "one backward pass gives all slopes"),
        ({"privacy": "local", "privacy_clip": 1.0, "privacy_noise": 1.0}, "of each example"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(tmp_path, changes, reason):
    with pytest.raises(ConfigError, match=reason):
        config(tmp_path, **{**EXACT, **changes})


def test_all_directions_of_a_space_give_the_gradient_itself():
    """With as many orthogonal signs as there are numbers the estimate is the gradient."""
    model = flatten(nn.Linear(31, 1))
    model.layout.clear_padding_(model.flat)
    directions = DIRECTIONS["hadamard"](model.layout)
    keys = direction_keys(1, 1, 0, 0, 64)
    loss = model.module(torch.randn(31, generator=torch.Generator().manual_seed(0))).sum()
    gradient = gradient_of(model, loss)
    numbers = exact_differences(directions, keys, gradient, 0.5)
    total = torch.zeros_like(gradient)
    directions.add_to_(total, keys, (numbers / len(keys)).tolist())
    model.layout.clear_padding_(total)
    torch.testing.assert_close(total, gradient, rtol=1e-5, atol=1e-6)
