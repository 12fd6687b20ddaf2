"""A readout on kept features: logits, exact slopes, statistics, files, refusals."""

import json
from dataclasses import replace
from math import inf

import numpy as np
import pytest
import torch
from federation import config as federation_config
from tiny_reviews import CLASSES, TEXTS, folders, reviews  # noqa: F401  (fixtures)

from client.site.site import LocalSite
from dandelion.engines.local import run_local
from shared.base.errors import ConfigError, DandelionError, DataError
from shared.data.documents import Documents
from shared.estimation.exact import exact_differences
from shared.estimation.two_point import two_point
from shared.features.pooling import FeaturePart, parse_features, pool, run_with_states
from shared.features.readout import BIAS, WEIGHT, Readout, load_readout
from shared.features.scaling import LONGEST, Scaling, shorten
from shared.modes.estimators import estimator_of
from shared.modes.mode import plan_of
from shared.protocol.messages import Request
from shared.protocol.site_id import SiteId
from shared.randomness.streams import direction_keys
from shared.training.corpus import Corpus, load_evaluation
from shared.training.oracle import Oracle, evaluate
from shared.training.server_choices import resolve_choices
from shared.training.validate import configure

KINDS = {
    "words": {"scope": "words"},
    "words+": {"scope": "words", "features": "last+layer:1:mean"},
    "prior": {"scope": "prior"},
    "head": {"scope": "head", "features": "mean"},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=KINDS)
def chosen(request, folders):
    model = folders["head" if request.param == "head" else "words"]
    return {"model": model, **CLASSES, **KINDS[request.param], "zo_batch_size": 0}


def configured(chosen, **changes):
    return resolve_choices(configure({**chosen, "threads": 1, **changes}))


def rows_of(oracle):
    documents = Documents(TEXTS, TEXTS, [n % 2 for n in range(60)])
    examples = oracle.task.examples(documents, 12)
    return torch.from_numpy(examples.batch(np.arange(24)))


def shake_(oracle):
    """Move the readout off zero, where errors would not depend on it."""
    torch.manual_seed(3)
    for name, view in oracle.replica.model.layout.views(oracle.replica.model.flat).items():
        view.copy_(torch.randn(view.shape) / (3 if name == WEIGHT else 1))


# --- logits


def test_a_readout_starts_as_the_model_itself(folders):
    words = Oracle.of(configured({"model": folders["words"], **CLASSES, "scope": "words"}))
    plain = Oracle.of(configure({"model": folders["words"], **CLASSES, "threads": 1}))
    rows = rows_of(words)
    assert words.loss(rows) == pytest.approx(plain.loss(rows), abs=1e-6)


def test_only_the_readout_is_trained(chosen):
    oracle = Oracle.of(configured(chosen))
    names = {span.name for span in oracle.replica.model.layout.tensors}
    assert names == ({BIAS} if chosen["scope"] == "prior" else {WEIGHT, BIAS})


def test_kept_features_give_the_loss_that_a_whole_pass_gives(chosen):
    oracle = Oracle.of(configured(chosen))
    shake_(oracle)
    rows = rows_of(oracle)
    kept = oracle.loss(rows)
    module = oracle.language_model.module
    next(p for n, p in module.named_parameters() if n not in (WEIGHT, BIAS)).requires_grad_(True)
    assert oracle.loss(rows) == pytest.approx(kept, rel=1e-5)


def test_each_example_goes_through_the_model_once(chosen):
    oracle = Oracle.of(configured(chosen))
    rows, seen = rows_of(oracle), []
    body = oracle.language_model.module.base_model
    body.register_forward_hook(lambda *call: seen.append(len(call[2][0])))
    for _ in range(3):
        oracle.loss(rows)
        evaluate(oracle, rows)
        oracle.loss(rows[:5])
    assert sum(seen) <= len(rows)  # fewer if texts occur twice, or if the statistics used them


def test_another_run_finds_the_features_whatever_its_seed(chosen):
    first, second = (Oracle.of(configured(chosen, seed=seed)) for seed in (1, 2))
    rows, seen = rows_of(first), []
    first.loss(rows)
    second.language_model.module.base_model.register_forward_hook(lambda *call: seen.append(call))
    second.loss(rows)
    assert not seen


def test_the_last_state_that_is_pooled_is_what_the_output_matrix_reads(folders):
    module = Oracle.of(configured({"model": folders["words"], **CLASSES})).language_model.module
    tokens, lengths = torch.randint(4, 16, (3, 7)), torch.tensor([7, 2, 5])
    states, scores = run_with_states(module, tokens, lengths, 0)
    last = pool((FeaturePart("last"),), states, lengths)
    torch.testing.assert_close(module.lm_head(last), scores)


def test_pooling_reads_a_text_and_not_its_padding():
    states = [torch.arange(24.0).view(2, 4, 3)]
    first, last, mean = (
        pool((FeaturePart(name),), states, torch.tensor([2, 4]))
        for name in ("first", "last", "mean")
    )
    assert first.tolist() == [[0, 1, 2], [12, 13, 14]]
    assert last.tolist() == [[3, 4, 5], [21, 22, 23]]
    assert mean.tolist() == [[1.5, 2.5, 3.5], [16.5, 17.5, 18.5]]


# --- exact slopes


def test_the_closed_form_is_the_gradient_by_autograd(chosen):
    oracle = Oracle.of(configured(chosen))
    shake_(oracle)
    rows, model = rows_of(oracle), oracle.replica.model
    loss, gradient = oracle.linear_gradient(rows)
    named = dict(model.module.named_parameters())
    parts = {span.name: named[span.name] for span in model.layout.tensors}
    value = oracle.task.loss(model.module, rows)
    gradients = torch.autograd.grad(value, list(parts.values()))
    expected = model.gather(dict(zip(parts, gradients, strict=True)))
    assert loss == pytest.approx(float(value.detach()), rel=1e-6)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5


def test_exact_slopes_are_the_limit_of_two_sided_differences(chosen):
    oracle = Oracle.of(configured(chosen))
    shake_(oracle)
    rows, directions = rows_of(oracle), oracle.replica.directions
    keys = direction_keys(1, 1, 0, 0, 8)
    exact = exact_differences(directions, keys, oracle.linear_gradient(rows)[1], 1e-3)
    oracle.language_model.module.double()  # differences of float32 losses are noise at a small eps
    layout, flat = oracle.replica.model.layout, oracle.replica.model.flat.double()

    def loss_at(key, scale):
        moved = flat + scale * sign_vector(directions, key, flat)
        state = layout.views(moved)
        logits = readout_logits(oracle, rows, state)
        return float(torch.nn.functional.cross_entropy(logits, rows[:, 0]))

    eps = 1e-5
    two = [(loss_at(key, eps) - loss_at(key, -eps)) / (2 * eps) for key in keys]
    error = np.abs(exact / 2e-3 - np.array(two)).max()
    assert error < 1e-5 * np.abs(two).max()


def sign_vector(directions, key, like):
    z = torch.zeros(like.shape)
    directions.add_to_(z, [key], [1.0])
    return z.double()


def readout_logits(oracle, rows, state):
    lengths = (rows[:, 1:] >= 0).sum(1)
    features, base = oracle.task.readout.inputs(
        oracle.language_model.module, rows[:, 1 : 1 + int(lengths.max())], lengths
    )
    weight = state.get(WEIGHT, torch.zeros(base.shape[1], features.shape[1], dtype=torch.float64))
    return base.double() + features.double() @ weight.T + state[BIAS]


def test_two_point_differences_of_a_readout_agree_with_exact_ones(chosen):
    oracle = Oracle.of(configured(chosen, estimator="two-point"))
    shake_(oracle)
    rows, keys = rows_of(oracle), direction_keys(1, 1, 0, 0, 8)
    measured = two_point(lambda k: oracle.loss(rows), oracle.perturber, keys, 1e-2)
    exact = exact_differences(
        oracle.replica.directions, keys, oracle.linear_gradient(rows)[1], 1e-2
    )
    np.testing.assert_allclose(measured, exact, atol=2e-3 * np.abs(exact).max())


# --- runs


def run(chosen, folder, **changes):
    settings = {
        **{"num_rounds": 25, "num_clients": 3, "queries": 16, "optimizer": "adam"},
        **{
            "learning_rate": 0.1,
            "snapshot_interval": 10,
            "eval_interval": 5,
            "seed": 4,
            "save_model": True,
        },
    }
    made = federation_config(folder, **{**chosen, **settings, **changes})
    return run_local(made)


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_federation_learns_by_exact_slopes(chosen, tmp_path):
    outcome = summary(run(chosen, tmp_path))
    assert outcome["evaluation_loss_last"] < outcome["evaluation_loss_first"]


def test_how_examples_are_dealt_does_not_matter_with_whole_shards(folders, tmp_path):
    """Only the order of float additions differs: the mean over sites is that of the union."""
    chosen = {"model": folders["words"], **CLASSES, "scope": "words", "zo_batch_size": 0}
    ends = [
        summary(run(chosen, tmp_path, name=how, partitioner=how))["evaluation_loss_last"]
        for how in ("iid", "natural")
    ]
    assert ends[0] == pytest.approx(ends[1], abs=1e-3)


def test_first_order_rounds_need_no_site_that_can_backpropagate(chosen):
    config = configured(chosen, mode="fo")
    assert plan_of(config, 1, can_backpropagate=False).dense


def test_a_saved_readout_is_loaded_and_gone_on_with(chosen, tmp_path):
    first = run(chosen, tmp_path, name="first")
    after = {**chosen, "init_from": str(first), "num_rounds": 1, "learning_rate": 1e-9}
    assert summary(run(after, tmp_path, name="second"))["evaluation_loss_first"] == pytest.approx(
        summary(first)["evaluation_loss_last"], abs=1e-5
    )


def test_a_prior_is_gone_on_with_by_words(folders, tmp_path):
    base = {"model": folders["words"], **CLASSES, "zo_batch_size": 0}
    first = run({**base, "scope": "prior"}, tmp_path, name="first")
    second = run({**base, "scope": "words", "init_from": str(first)}, tmp_path, name="second")
    bias = {**base, "scope": "bias", "zo_batch_size": 4, "init_from": str(second)}
    third = run(bias, tmp_path, name="third", learning_rate=1e-9, num_rounds=1)
    starts, ends = (
        [summary(folder)[f"evaluation_loss_{which}"] for folder in (first, second, third)]
        for which in ("first", "last")
    )
    assert starts[1:] == pytest.approx(ends[:-1], abs=1e-4)


def test_a_damaged_readout_is_refused(tmp_path):
    Readout("last", 2, Scaling.identity(3)).save(tmp_path)
    (tmp_path / "readout.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="readout expected"):
        load_readout(tmp_path)


# --- statistics


def test_statistics_come_back_from_their_text_to_the_bit():
    scaling = Scaling.of(torch.randn(40, 5, generator=torch.Generator().manual_seed(1)) * 7 + 3)
    again = Scaling.decode(scaling.encode(), 5)
    assert torch.equal(scaling.mean, again.mean)
    assert torch.equal(scaling.factor, again.factor)


def test_standardised_features_have_mean_zero_and_deviation_one(chosen):
    config = configured(chosen)
    oracle = Oracle.of(config)
    rows = load_evaluation(Corpus.of(config, oracle.language_model), oracle.language_model)
    module = oracle.language_model.module
    standard = module.readout.standardise(oracle.task.raw_features(module, rows))
    torch.testing.assert_close(standard.mean(0), torch.zeros(standard.shape[1]), atol=0.05, rtol=0)
    torch.testing.assert_close(standard.std(0), torch.ones(standard.shape[1]), atol=0.05, rtol=0)
    assert Oracle.of(config).base != Oracle.of(config.replace(feature_scaling="none")).base


def test_a_constant_channel_is_centred_and_not_blown_up():
    features = torch.tensor([[1.0, 2.0], [1.0, 4.0], [1.0, 6.0]])
    scaling = Scaling.of(features)
    assert scaling.factor[0] == 1
    assert torch.all((features - scaling.mean)[:, 0] == 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [("auto", "dandelion run"), ("nonsense", "begins with"), ("std2:!!", "no base64"),
     ("std1:AAAA", "other features"), ("std2:" + "////////", "finite")],
)  # fmt: skip
def test_statistics_of_another_form_are_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        Scaling.decode(text, 1)


def correlated(rows=60, count=5):
    generator = torch.Generator().manual_seed(3)
    mixed = torch.randn(count, count, generator=generator)
    return torch.randn(rows, count, generator=generator) @ mixed * 7 + 3


def test_whitened_features_are_uncorrelated_and_travel_as_text():
    features = correlated()
    scaling = Scaling.whiten(features, 3)
    white = scaling.apply(features).double()
    assert white.shape == (60, 3)
    covariance = white.T @ white / len(white)
    assert torch.allclose(covariance, torch.eye(3).double(), atol=0.03)  # int8 of the basis
    again = Scaling.decode(scaling.encode(), 5)
    assert torch.equal(again.basis, scaling.basis)
    assert torch.equal(again.apply(features), scaling.apply(features))
    assert (again.width, Scaling.of(features).width) == (3, 5)
    assert again.encode() == scaling.encode()


def seldom_active():
    """Features of a server, whose first channel hardly varies, and a site's, where once it does."""
    server = correlated()
    server[:, 0] = 1e-4 * torch.randn(len(server), generator=torch.Generator().manual_seed(5))
    site = server.clone()
    site[7, 0] = 10.0
    return server, site


@pytest.mark.parametrize("make", [Scaling.of, lambda features: Scaling.whiten(features, 5)])
def test_an_example_of_a_channel_that_the_server_hardly_saw_is_shortened(make):
    server, site = seldom_active()
    scaling = make(server)
    unbounded = replace(scaling, longest=inf).apply(site)
    assert unbounded[7].norm() > 1000
    bounded = scaling.apply(site)
    assert bounded[7].norm() == pytest.approx(LONGEST * 5**0.5)
    torch.testing.assert_close(bounded[7] * unbounded[7].norm(), unbounded[7] * bounded[7].norm())
    others = torch.arange(len(site)) != 7
    assert torch.equal(bounded[others], unbounded[others])


def test_lengths_beyond_float32_are_shortened_too():
    short = shorten(torch.tensor([[3e38, 3e38], [0.0, 0.0]]), LONGEST)
    torch.testing.assert_close(short, torch.tensor([[LONGEST, LONGEST], [0.0, 0.0]]))


@pytest.mark.parametrize("make", [Scaling.of, lambda features: Scaling.whiten(features, 5)])
def test_a_scaling_of_a_former_version_shortens_nothing(make, tmp_path):
    server, site = seldom_active()
    former = replace(make(server), longest=inf)
    again = Scaling.decode(former.encode(), 5)
    assert torch.equal(again.apply(site), former.apply(site))
    for scaling in (former, make(server)):
        readout = Readout("last", 2, scaling)
        readout.save(tmp_path)
        loaded = load_readout(tmp_path)
        assert loaded.scaling.encode() == scaling.encode()
        assert torch.equal(loaded.standardise(site), scaling.apply(site))
    assert "longest" not in Readout("last", 2, former).state_dict()


@pytest.mark.parametrize("components", [0, 6])
def test_more_components_than_there_are_cannot_be_had(components):
    with pytest.raises(ConfigError, match=f"K from 1 to 5 expected.*got {components}"):
        Scaling.whiten(correlated(), components)


@pytest.mark.parametrize("text", ["whiten:", "whiten:two", "whiten:-1"])
def test_a_number_of_components_is_expected(chosen, text):
    with pytest.raises(ConfigError, match="whiten:K for a number K expected"):
        configured(chosen, feature_scaling=text)


def test_a_whitened_text_of_other_features_is_refused():
    text = Scaling.whiten(correlated(), 2).encode()
    with pytest.raises(ConfigError, match="numbers of 4 features expected, got 48 bytes"):
        Scaling.decode(text, 4)


def test_a_readout_of_main_components_learns_saves_and_goes_on(folders, tmp_path):
    """Its slopes are exact, its file has the basis, and another run starts from it."""
    settings = {"model": folders["words"], **CLASSES, "scope": "words", "zo_batch_size": 0,
                "feature_scaling": "whiten:4", "num_clients": 2, "num_rounds": 6, "threads": 1,
                "queries": 8, "step": "auto", "output_dir": str(tmp_path),
                "eval_fraction": 0.4}  # fmt: skip
    config = configured(settings)
    assert Oracle.of(config).replica.model.layout.parameters == 2 * 4 + 2
    folder = run_local(configure(settings))
    losses = json.loads((folder / "summary.json").read_text())
    assert losses["evaluation_loss_last"] < losses["evaluation_loss_first"]
    readout = load_readout(folder / "model")
    assert readout.scaling.basis.shape == (readout.mean.shape[0], 4)
    again = configured(settings, init_from=str(folder), feature_scaling="auto")
    assert again.model.feature_scaling == readout.scaling.encode()
    after = evaluate(Oracle.of(again), rows_of(Oracle.of(again))).loss
    assert after < evaluate(Oracle.of(config), rows_of(Oracle.of(config))).loss


# --- settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scope": "words", "model": "head"}, "scope head with features"),
        ({"scope": "head", "features": "mean", "model": "words"}, "scope words"),
        ({"scope": "words", "features": "layer:3"}, "layer from 1 to 2"),
        ({"scope": "words", "features": "layer:x"}, "layer:<number>"),
        ({"scope": "words", "features": "lasst"}, "last"),
        ({"scope": "bias", "features": "last"}, "scope words, prior or head"),
        ({"scope": "words", "parallel_queries": 2}, "parallel-queries"),
        ({"scope": "words", "merge_clients": True}, "merge-clients"),
        ({"scope": "words", "query_data": "fresh"}, "query-data"),
        ({"scope": "words", "mode": "instruct"}, "mode 'instruct'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(changes, words, folders):
    chosen = {"model": folders[changes.pop("model", "words")], **CLASSES, **changes}
    with pytest.raises(DandelionError, match=words):
        Oracle.of(configured({**chosen, "feature_scaling": "none"}))


def test_words_need_a_task_with_classes():
    with pytest.raises(ConfigError, match="task classification"):
        Oracle.of(configure({"scope": "words", "feature_scaling": "none"}))


def test_parts_of_features_are_read():
    assert parse_features("", "mean") == (FeaturePart("mean"),)
    assert parse_features("last+layer:2+layer:1:first", "mean") == (
        FeaturePart("last"), FeaturePart("mean", 2), FeaturePart("first", 1),
    )  # fmt: skip


def test_auto_is_exact_where_the_scope_is_linear(chosen):
    assert estimator_of(configured(chosen)) == "exact"
    assert estimator_of(configure({"threads": 1})) != "exact"


def test_a_whole_shard_is_every_example_once(chosen):
    config = configured(chosen, queries=4)
    oracle = Oracle.of(config)
    documents = Documents(TEXTS, TEXTS, [n % 2 for n in range(60)])
    site = LocalSite(SiteId(1, "a"), oracle.task.examples(documents, 12), config)
    request = Request(1, 0.1, bytes(16), bytes(16), bytes(16))
    expected, _ = oracle.linear_gradient(torch.from_numpy(site.examples.batch(np.arange(60))))
    assert site.measure(oracle, request).loss == np.float32(expected)
