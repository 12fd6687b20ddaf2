"""The learning benchmark: methods are settings, costs the ledger's, and the best rate counts."""

import csv
import json
from dataclasses import replace
from math import inf

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from typer.testing import CliRunner

from dandelion.bench.learning import learning, mnist, seed_pool
from dandelion.bench.learning.linear_probe import DECAYS, LinearProbe, probe_points
from dandelion.bench.learning.methods import DECOMFL, FACTORS, FEDAVG_LORA, MEZO, PEERS, PROBE
from dandelion.bench.learning.problems import PROBLEMS, problem_of
from dandelion.bench.learning.race import Trial, configuration, methods_of, race
from dandelion.bench.learning.race_points import RaceCurve, RacePoint
from dandelion.bench.learning.race_report import best_curves, markdown, table_rows
from dandelion.cli.bench import app
from shared.base.errors import UnknownNameError
from shared.base.flat import Layout
from shared.config.scope_names import SCOPES
from shared.data.documents import DATASETS
from shared.data.sets.pictures import Pictures
from shared.directions import DIRECTIONS
from shared.models.model import MODELS
from shared.randomness.streams import Key
from shared.tasks.task import TASKS

SIDE = mnist.SIDE


@pytest.fixture(autouse=True)
def _registries(monkeypatch):
    """What the benchmark registers is gone after a test: contract tests run over registries."""
    for registry in (DIRECTIONS, MODELS, TASKS, DATASETS):
        registry.names()
        monkeypatch.setattr(registry, "_known", dict(registry._known))
    seed_pool.register()


@pytest.fixture
def pictures(monkeypatch):
    """Twenty pictures of each digit: a bright row that its class names, and noise."""
    rng, labels = np.random.default_rng(1), np.arange(200) % 10
    pixels = rng.integers(0, 60, (200, SIDE, SIDE)).astype(np.uint8)
    pixels[np.arange(200), 2 * labels] = 250
    whole = Pictures(pixels, 255, labels, tuple("0123456789"), np.arange(200) >= 150)
    monkeypatch.setattr(mnist, "mnist_pictures", lambda: whole)
    mnist.register()
    return whole


def small(tmp_path, **changes):
    return Trial(tmp_path, seeds=1, **changes)


def point(loss, **changes):
    costs = dict.fromkeys(("seconds", "payload_up", "payload", "message", "examples"), 1.0)
    return RacePoint(round=1, evaluations=changes.pop("evaluations", 4), loss=loss, **costs)


# --- methods are settings


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_every_method_of_a_problem_is_a_valid_configuration(problem, tmp_path, monkeypatch):
    mnist.register()
    monkeypatch.setattr("dandelion.bench.learning.race._batch", lambda config: 16)
    for method in methods_of(problem):
        if method.settings.get("scope") not in {None, *SCOPES}:
            continue  # the command refuses it by name before anything runs
        rate = problem.rates[method.name] if method.rate else None
        config = configuration(problem, method, rate, 1, small(tmp_path))
        assert config.training.rounds >= 1


def test_peers_are_set_as_they_were_published(tmp_path):
    demo = problem_of("demo")
    configs = {
        method.name: configuration(demo, method, 1e-3, 1, small(tmp_path)) for method in PEERS
    }
    assert (configs["mezo"].zo.queries, configs["mezo"].zo.estimator) == (1, "two-point")
    assert (configs["decomfl"].zo.queries, configs["decomfl"].zo.estimator) == (5, "forward")
    assert configs["fzoo"].optimizer.step == "normalised"
    assert (configs["fzoo"].optimizer.step_memory, configs["fzoo"].optimizer.movement) == (0, 1e-3)
    assert configs["fedkseed"].zo.directions == seed_pool.NAME
    assert configs["fedavg"].training.mode == configs["fedavg-lora"].training.mode == "fedavg"
    assert configs["fedavg-lora"].model.scope == "lora"
    assert all(config.guard.rewinds == 0 for name, config in configs.items() if name[0] != "f")


def test_mnist_has_decomfls_published_setting(tmp_path):
    mnist.register()
    problem = problem_of("mnist")
    c = configuration(problem, DECOMFL, problem.rates["decomfl"], 1, small(tmp_path))
    assert (c.federation.num_clients, c.federation.clients_per_round) == (100, 10)
    assert (c.zo.queries, c.zo.batch_size, c.optimizer.learning_rate) == (20, 256, 1e-3)
    assert c.options == {"momentum": 0.9, "weight-decay": 1e-5}
    assert c.training.rounds == 100  # 21 evaluations a round


@pytest.mark.parametrize("method", PEERS, ids=lambda method: method.name)
def test_all_get_the_same_evaluations(tmp_path, method):
    trial = small(tmp_path)
    config = configuration(problem_of("demo"), method, 1e-3, 1, trial)
    each = {"mezo": 2, "decomfl": 6, "fedkseed": 20, "fzoo": 9, "fedavg": 12, "fedavg-lora": 12}
    assert config.training.rounds == round(1200 / each[method.name])


def test_methods_are_chosen_by_name():
    assert [m.name for m in methods_of(problem_of("demo"), ["mezo"])] == ["mezo"]
    assert FEDAVG_LORA not in methods_of(problem_of("mnist"))
    with pytest.raises(UnknownNameError, match="mezzo"):
        methods_of(problem_of("demo"), ["mezzo"])
    with pytest.raises(UnknownNameError, match="known: demo"):
        problem_of("dem")


# --- the pool of FedKSeed


def test_a_pool_has_so_many_directions_and_no_more():
    layout = Layout.of([("all", (64,))])
    directions = seed_pool.SeedPool(layout, pool=5)
    seen = set()
    for round_ in range(100):
        z = torch.zeros(layout.size)
        directions.add_to_(z, [Key(1, round_, 3, 0)], [1.0])
        seen.add(tuple(z.tolist()))
    assert len(seen) == 5


def test_a_pool_perturbs_along_what_it_adds():
    layout = Layout.of([("all", (8, 16))])
    directions, key = seed_pool.SeedPool(layout, pool=3), Key(1, 7, 2, 4)
    z, out = torch.zeros(layout.size), torch.zeros(layout.size)
    directions.add_to_(z, [key], [0.5])
    directions.perturb_(out, torch.zeros(layout.size), 0, key, 0.5)
    rows = torch.zeros(2, 16)
    directions.add_rows_(rows, torch.tensor([0, 3]), 0, key, 0.5)
    torch.testing.assert_close(out, z)
    torch.testing.assert_close(rows, z[:128].view(8, 16)[[0, 3]])


# --- MNIST


def test_the_network_is_decomfls():
    model = mnist.network(1)
    assert sum(p.numel() for p in model.module.parameters()) == 28_938
    again, other = mnist.network(1).module, mnist.network(2).module
    assert torch.equal(again.out.weight, model.module.out.weight)
    assert not torch.equal(other.out.weight, model.module.out.weight)


def test_pixels_come_through_as_they_are(pictures):
    documents = DATASETS["mnist-pixels"].load(0, "digit")
    examples = mnist.pixel_task(None, None).examples(documents, SIDE * SIDE)
    first = examples.batch(np.arange(1))[0]
    own = np.flatnonzero(pictures.labels == first[0])[0]
    np.testing.assert_array_equal(first[1:], pictures.pixels[own].ravel())


def test_the_network_learns_by_numbers_alone(tmp_path, pictures):
    more = {"num-clients": 3, "clients-per-round": 0, "zo-batch-size": 16}
    trial = small(tmp_path, factors=(3.0,), evaluations=420, more=more, methods=("decomfl",))
    curves = race(problem_of("mnist"), trial, lambda text: None)
    (learned,) = (curve for curve in curves if curve.method == "decomfl")
    assert learned.points[0].accuracy < 0.3
    assert learned.accuracy > learned.points[0].accuracy + 0.2
    (probe,) = (curve for curve in curves if curve.method == PROBE)
    assert probe.accuracy > 0.9  # a row tells the class


# --- the linear probe


def test_a_probe_is_at_the_optimum_of_its_loss():
    torch.manual_seed(1)
    features, weights = torch.randn(300, 5), torch.randn(5, 3)
    labels = (features @ weights + torch.randn(300, 3)).argmax(1)
    probe, decay = LinearProbe.fit(features, labels, 3, 1e-2), 1e-2
    scaled = (features - probe.mean) / probe.deviation
    loss = F.cross_entropy(probe.layer(scaled), labels) + decay * probe.layer.weight.square().sum()
    gradients = torch.autograd.grad(loss, list(probe.layer.parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-3
    assert probe.evaluate(features, labels)[0] < float(torch.log(torch.tensor(3.0)))
    assert LinearProbe.choose_decay(features, labels, 3) in DECAYS


def test_noise_wants_more_decay_than_signal():
    torch.manual_seed(2)
    features = torch.randn(60, 40)
    assert LinearProbe.choose_decay(features, torch.randint(0, 2, (60,)), 2) == max(DECAYS)
    probe = LinearProbe.fit(features, (features[:, 0] > 0).long(), 2, 1e-4)
    assert probe.evaluate(features, (features[:, 0] > 0).long())[1] > 0.95


def test_a_probe_of_a_language_model_beats_the_untrained_one(tmp_path):
    trial = small(tmp_path, more=learning.QUICK)
    config = configuration(problem_of("demo"), MEZO, 1e-3, 1, trial)
    points = probe_points(config, most=80)
    assert [p.examples for p in points] == [5, 10, 20, 40]  # per site, of two
    assert points[-1].loss < points[0].loss < 5.4
    assert points[-1].payload_up == 80 * 31 * 64 * 4 / 2
    assert points[-1].accuracy is None


# --- costs and the choice of a rate


def test_a_curve_has_the_costs_of_its_ledger(tmp_path):
    trial = small(tmp_path, factors=(1.0,), evaluations=8, more=learning.QUICK, methods=["mezo"])
    probe, curve = race(problem_of("demo"), trial, lambda text: None)
    last = curve.points[-1]
    assert probe.method == PROBE
    assert (last.round, last.evaluations, last.examples) == (4, 8, 32)
    assert 0 < last.payload_up < last.payload < last.message


def test_the_rate_whose_first_seed_ends_lowest_counts_with_all_its_seeds():
    def curve(rate, seed, loss):
        return RaceCurve("mezo", "", rate, seed, [point(5.0), point(loss, evaluations=8)])

    curves = [curve(1.0, 1, 3.0), curve(0.25, 1, 2.0), curve(4.0, 1, inf), curve(0.25, 2, 2.5)]
    assert [c.seed for c in best_curves(curves)["mezo"]] == [1, 2]
    (row,) = table_rows(curves)
    assert row[:3] == ["mezo", "0.25 (edge)", "2.2500 (2.0000 to 2.5000)"]
    assert row[4] == "never"  # one seed of two ends above the median
    assert "| mezo | 0.25 (edge) |" in markdown(curves)


def test_a_diverged_method_says_so():
    (row,) = table_rows([RaceCurve("decomfl", "", 1.0, 1, [point(inf)])])
    assert row[2] == "diverged"


def test_a_rate_that_diverges_ends_its_own_curve_only(tmp_path):
    trial = small(
        tmp_path, factors=(1.0, 1e9), evaluations=30, more=learning.QUICK, methods=["mezo"]
    )
    curves = race(problem_of("demo"), trial, lambda text: None)[1:]
    assert curves[0].final < 6
    assert curves[1].final > 100
    assert best_curves(curves)["mezo"] == [curves[0]]


def test_a_base_is_trained_once_and_started_from(tmp_path):
    problem = replace(
        problem_of("demo-base"),
        start={**problem_of("demo-base").start, **learning.QUICK_START},
    )
    trial = small(tmp_path, factors=(1.0,), evaluations=2, more=learning.QUICK, methods=["mezo"])
    race(problem, trial, lambda text: None)
    base = tmp_path / "demo-base" / "base" / "model" / "config.json"
    written = base.stat().st_mtime_ns
    race(problem, trial, lambda text: None)
    assert base.stat().st_mtime_ns == written


# --- the command


@pytest.mark.slow
def test_quick_runs_every_method_and_writes_its_files(tmp_path):
    done = CliRunner().invoke(app, ["learning", "--quick", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    for name in ("demo", "demo-base"):
        curves = json.loads((tmp_path / f"{name}.json").read_text())["curves"]
        assert {c["method"] for c in curves} == {
            PROBE, *(m.name for m in methods_of(PROBLEMS[name]))
        }  # fmt: skip
        rows = list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines()))
        assert len(rows) == sum(len(c["points"]) for c in curves)
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert f"| {PROBE} |" in (tmp_path / f"{name}.md").read_text()
        assert name in done.output
    assert "mnist: left out" in done.output


def test_the_command_races_one_method(tmp_path):
    options = ["--task", "demo", "--method", "mezo", "--quick", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, ["learning", *options])
    assert done.exit_code == 0, done.output
    assert "| mezo |" in done.output
    assert len(FACTORS) == 5
