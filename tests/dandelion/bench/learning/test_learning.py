"""The learning benchmark: methods are settings, costs the ledger's, and the best rate counts."""

import csv
import json
from contextlib import closing
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
from dandelion.bench.learning.race_report import (
    bars_of_scores,
    best_curves,
    draw,
    markdown,
    table_rows,
    write_files,
)
from dandelion.cli.bench import app
from server.ledger.reader import LedgerReader
from server.ledger.run_folder import LEDGER
from shared.base.errors import ConfigError, UnknownNameError
from shared.base.flat import Layout
from shared.config.schema import Config
from shared.config.scope_names import SCOPES
from shared.data.documents import DATASETS
from shared.data.sets.pictures import Pictures
from shared.directions import DIRECTIONS
from shared.models.model import MODELS
from shared.randomness.streams import Key
from shared.tasks.task import TASKS
from shared.training.oracle import Oracle
from shared.training.validate import configure

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


@pytest.fixture
def _unprobed(monkeypatch):
    """A race without its linear probe, which takes longer than a small run."""
    monkeypatch.setattr("dandelion.bench.learning.race.probe_points", lambda config, most: [])


def small(tmp_path, **changes):
    return Trial(tmp_path, seeds=1, **changes)


def point(loss, **changes):
    costs = dict.fromkeys(("seconds", "payload_up", "payload", "message", "examples"), 1.0)
    costs |= {"evaluations": 4, **changes}
    return RacePoint(round=1, loss=loss, **costs)


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
    assert (c.zo.estimator, c.data.batch_order) == ("two-point", "epochs")
    assert c.training.rounds == round(2100 / 40)


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


def test_the_network_is_the_published_order_of_layers():
    torch.manual_seed(3)
    module, pixels = mnist.network(1).module, torch.randint(0, 256, (70, SIDE * SIDE))
    first, second = (layer for layer in module.body if isinstance(layer, torch.nn.Conv2d))
    maps = ((pixels.float() / 255 - 0.1307) / 0.3081).view(-1, 1, SIDE, SIDE)
    for layer in (first, second):
        maps = F.max_pool2d(F.relu(layer(maps)), 2)
    with torch.no_grad():
        torch.testing.assert_close(module(pixels).logits, module.out(maps.flatten(1)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_relu_after_the_maximum_is_relu_before_it(layout):
    torch.manual_seed(4)
    maps = torch.randn(3, 5, 8, 6).to(memory_format=layout)
    pooled = mnist.PositiveMaximum()(maps)
    assert torch.equal(pooled, F.max_pool2d(F.relu(maps), 2))
    assert pooled.is_contiguous(memory_format=layout)


def test_pixels_come_through_as_they_are(pictures):
    documents = DATASETS["mnist-pixels"].load(0, "digit")
    examples = mnist.PixelTask()(Config(), mnist.network(1)).examples(documents, SIDE * SIDE)
    first = examples.batch(np.arange(1))[0]
    own = np.flatnonzero(pictures.labels == first[0])[0]
    np.testing.assert_array_equal(first[1:], pictures.pixels[own].ravel())


@pytest.mark.slow
def test_the_network_learns_by_numbers_alone(tmp_path, pictures):
    more = {"num-clients": 3, "clients-per-round": 0, "zo-batch-size": 16}
    trial = small(tmp_path, factors=(3.0,), evaluations=420, more=more, methods=("decomfl",))
    curves = race(problem_of("mnist"), trial, lambda text: None)
    (learned,) = (curve for curve in curves if curve.method == "decomfl")
    assert learned.points[0].accuracy < 0.3
    assert learned.accuracy > learned.points[0].accuracy + 0.2
    (probe,) = (curve for curve in curves if curve.method == PROBE)
    assert probe.accuracy > 0.9  # a row tells the class


def test_sites_train_a_readout_of_the_pictures_by_exact_slopes(tmp_path, pictures):
    more = {
        "num-clients": 3, "clients-per-round": 0, "zo-batch-size": 0, "feature-scaling": "auto",
        "keep-disk": 0, "eval-interval": 10,
    }  # fmt: skip
    trial = small(tmp_path, evaluations=20, more=more, methods=("ours: readout",))
    (curve,) = race(problem_of("mnist"), trial, lambda text: None)[1:]
    last = curve.points[-1]
    assert (last.round, last.evaluations, last.examples) == (20, 20, 20 * 50)  # one a round
    assert last.accuracy > curve.points[0].accuracy + 0.3


def test_a_task_says_whether_a_readout_fits_it(pictures, monkeypatch):
    settings = {**problem_of("mnist").settings, "scope": "head", "features": "first"}
    config = configure({**settings, "feature-scaling": "none"})
    spans = Oracle.of(config).replica.model.layout.tensors
    assert sum(span.stop - span.start for span in spans) == 10 * (mnist.FEATURES + 1)
    monkeypatch.setitem(TASKS._known, "pictures", mnist.PixelTask(0))
    with pytest.raises(ConfigError, match="needs task classification or regression"):
        Oracle.of(config)


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


def test_evaluations_are_counted_to_an_accuracy_too():
    def curve(method, *accuracies):
        points = [
            point(3.0 - at, evaluations=10 * at, accuracy=value)
            for at, value in enumerate(accuracies)
        ]
        return RaceCurve(method, "", 1.0, 1, points)

    curves = [
        curve("decomfl", 0.1, 0.5, 0.8),
        curve("fast", 0.1, 0.8, 0.9),
        curve("slow", 0.1, 0.2, 0.7),
    ]
    rows = {row[0]: row for row in table_rows(curves)}
    assert {name: row[5] for name, row in rows.items()} == {
        "decomfl": "20", "fast": "10", "slow": "never"
    }  # fmt: skip
    assert "evaluations to decomfl's accuracy" in markdown(curves)
    assert table_rows([curve("decomfl", None)])[0][5] == "–"


def test_published_accuracies_stand_where_our_run_of_the_method_was_as_far(tmp_path, rendered):
    points = [
        replace(point(1.0, evaluations=21.0 * at, accuracy=0.3), round=at) for at in (1, 20, 40)
    ]
    curves = [RaceCurve("decomfl", "", 1e-3, 1, points), RaceCurve("other", "", 1.0, 1, points)]
    problem = problem_of("mnist")
    bars = bars_of_scores(problem.published_scores, best_curves(curves), "evaluations")
    assert bars == [(420.0, 0.3122, 0.3379)]
    assert bars_of_scores(problem.published_scores, best_curves(curves[1:]), "evaluations") == []
    draw(problem, curves, tmp_path / "with.png")
    draw(problem_of("minilm-head"), curves, tmp_path / "without.png")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


def test_files_keep_the_curves_of_methods_that_were_raced_before(tmp_path):
    def write(*methods, loss):
        points = [point(5.0), point(loss, evaluations=8)]
        curves = [RaceCurve(name, "", 1.0, 1, points) for name in methods]
        write_files(problem_of("demo"), curves, tmp_path)
        written = json.loads((tmp_path / "demo.json").read_text())["curves"]
        return {curve["method"]: curve["points"][-1]["loss"] for curve in written}

    assert write("mezo", "fzoo", loss=3.0) == {"mezo": 3.0, "fzoo": 3.0}
    assert write("fzoo", "decomfl", loss=2.0) == {"mezo": 3.0, "fzoo": 2.0, "decomfl": 2.0}
    assert (tmp_path / "demo.md").read_text().count("\n| mezo |") == 1


def test_a_diverged_method_says_so():
    (row,) = table_rows([RaceCurve("decomfl", "", 1.0, 1, [point(inf)])])
    assert row[2] == "diverged"


@pytest.mark.usefixtures("_unprobed")
def test_a_rate_that_diverges_ends_its_own_curve_only(tmp_path):
    trial = small(
        tmp_path, factors=(1.0, 1e9), evaluations=30, more=learning.QUICK, methods=["mezo"]
    )
    curves = race(problem_of("demo"), trial, lambda text: None)[1:]
    assert curves[0].final < 6
    assert curves[1].final > 100
    assert best_curves(curves)["mezo"] == [curves[0]]


@pytest.mark.usefixtures("_unprobed")
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


# --- a race that goes on


def rounds_of(folder):
    """Rounds of a run, each with the time at which it was recorded."""
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        return {row.round: row.timestamp for row in ledger.metrics()}


@pytest.mark.usefixtures("_unprobed")
def test_an_interrupted_race_goes_on_where_it_was(tmp_path, monkeypatch):
    more = {**learning.QUICK, "eval-interval": 2}
    trial = small(tmp_path, factors=(1.0,), evaluations=12, more=more, methods=["mezo"])
    lines = list[str]()

    def stop(line):
        lines.append(line)
        if "round 4" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        race(problem_of("demo"), trial, stop)
    folder = tmp_path / "demo" / "mezo" / "0.002-seed-1"
    before = rounds_of(folder)
    assert [line.split(",")[0] for line in lines] == [
        f"mezo at 0.002: round {round_}" for round_ in (0, 2, 4)
    ]
    assert list(before) == [1, 2, 3, 4]
    (curve,) = race(problem_of("demo"), trial, lambda text: None)[1:]
    after = rounds_of(folder)
    assert [p.round for p in curve.points] == [0, 2, 4, 6]
    assert before.items() <= after.items()

    (again,) = race(problem_of("demo"), trial, lambda text: None)[1:]
    assert (again.points, rounds_of(folder)) == (curve.points, after)  # nothing was run


@pytest.mark.usefixtures("_unprobed")
def test_a_folder_of_other_settings_begins_anew(tmp_path):
    trial = small(tmp_path, factors=(1.0,), evaluations=4, more=learning.QUICK, methods=["mezo"])
    (first,) = race(problem_of("demo"), trial, lambda text: None)[1:]
    other = replace(trial, more={**learning.QUICK, "zo-batch-size": 3})
    (second,) = race(problem_of("demo"), other, lambda text: None)[1:]
    assert [p.round for p in first.points] == [p.round for p in second.points] == [0, 1, 2]
    assert second.points[-1].examples == 4 * 3


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
