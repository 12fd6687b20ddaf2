"""One's own problem trains as a task of ours does, and what does not fit is refused by name."""

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from own_problem import SETTINGS, write_problem
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from dandelion import Problem, Site
from dandelion.engines.local import run_local
from server.ledger.reader import LedgerReader
from server.ledger.run_folder import LEDGER
from shared.base.errors import ConfigError, DataError
from shared.config.schema import Config
from shared.problem.load import load_problem
from shared.problem.model import load_weights_, problem_model
from shared.problem.source import source_digest, source_files
from shared.problem.table import ExampleTable, examples_of, source_of
from shared.training.corpus import Corpus
from shared.training.oracle import Oracle
from shared.training.problem_trial import ProblemTrial
from shared.training.validate import configure


@pytest.fixture
def app(tmp_path, monkeypatch, request):
    """A problem in a module that no other test has."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return write_problem(tmp_path, f"own_{abs(hash(request.node.name))}")


def settings(app, folder, **more):
    return Config({**SETTINGS, "app": app, "output-dir": str(folder / "runs"), **more})


def problem(**more):
    """A linear problem of one layer, to be spoilt."""
    x = torch.arange(40.0).view(20, 2) / 40
    fields = {
        "model": lambda: nn.Linear(2, 1),
        "examples": lambda: (x, x.sum(1)),
        "loss": lambda module, batch: (module(batch[0])[:, 0] - batch[1]) ** 2,
    }
    return Problem(**{**fields, **more})


@pytest.fixture
def registered(monkeypatch, tmp_path):
    """Make a problem importable; return its oracle and corpus."""

    def register(own, **more):
        name = f"made_{id(own)}"
        file = tmp_path / f"{name}.py"
        file.write_text("")
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
        module = module_from_spec(spec_from_file_location(name, file))
        module.problem = own
        monkeypatch.setitem(sys.modules, name, module)
        config = configure({**SETTINGS, "app": f"{name}:problem", **more})
        oracle = Oracle.of(config)
        return oracle, Corpus.of(config, oracle.language_model)

    return register


def test_a_run_learns_records_metrics_and_is_repeated_to_the_bit(app, tmp_path):
    runs = [run_local(settings(app, tmp_path, **{"run-name": name})) for name in ("a", "b")]
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    assert summaries[0]["digest"] == summaries[1]["digest"]
    assert {"evaluation_accuracy_first", "evaluation_accuracy_last"} <= summaries[0].keys()
    ledger = LedgerReader.open(runs[0] / LEDGER)
    assert [round_ for round_, _ in ledger.scores()["accuracy"]] == [0, 3]
    ledger.close()
    module = load_problem(app).problem.model()
    load_weights_(module, runs[0] / "model" / "model.safetensors")


@pytest.mark.parametrize(
    "more",
    [
        {"mode": "fo"},
        {"mode": "calibrate", "bp-interval": 2},
        {"mode": "instruct", "bp-interval": 2},
        {"mode": "fedavg", "local-steps": 2, "learning-rate": 1e-3},
        {"scope": "bias"},
        {"scope": "regex:^out"},
        {"dtype": "bfloat16", "eps": 0.05},
        {"zo-batch-size": 0, "estimator": "forward"},
        {"estimator": "exact", "batch-order": "epochs"},
        {"split-bp-zo-data": True, "mode": "calibrate", "bp-interval": 2},
    ],
    ids=str,
)
def test_every_mode_and_scope_that_needs_no_tokens_works(app, tmp_path, more):
    run = run_local(settings(app, tmp_path, **more))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["rounds"] == 3
    assert not summary["refused_replies"]


@pytest.mark.parametrize("key", ["objective=accuracy", "model=20M", "dataset=topics", "scope=lora",
                                 "scope=head", "scope=words", "parallel-queries=2",
                                 "task=classification", "features=mean", "app=digits"])  # fmt: skip
def test_what_a_problem_does_not_have_is_refused_by_name(key):
    name, _, value = key.partition("=")
    given = {"app": "some:problem", name: int(value) if value.isdigit() else value}
    with pytest.raises(ConfigError, match=name):
        configure(given)


def test_initial_weights_do_not_come_from_torchs_generator(app):
    own = load_problem(app).problem
    one, other = problem_model(app, own, 1).module, problem_model(app, own, 2).module
    assert torch.equal(one.inner.weight, problem_model(app, own, 1).module.inner.weight)
    assert not torch.equal(one.inner.weight, other.inner.weight)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert not torch.equal(one.inner.weight, own.model().inner.weight)
    assert float(one.inner.weight.detach().std()) == pytest.approx((1 / 30) ** 0.5, rel=0.2)
    assert float(one.table.weight.detach().std()) == pytest.approx(1, rel=0.3)


def test_weights_that_no_chance_decides_stay():
    fixed = torch.linspace(-1, 1, 2).view(1, 2)

    def pretrained():
        module = nn.Sequential(nn.Linear(2, 1), nn.LayerNorm(1))
        module[0].weight.data.copy_(fixed)
        return module

    module = problem_model("x:y", problem(model=pretrained), 1).module
    assert torch.equal(module[0].weight, fixed)
    assert torch.equal(module[1].weight, torch.ones(1))


def test_weights_of_a_file_are_read_and_others_are_refused(tmp_path):
    first = problem_model("x:y", problem(), 1)
    first.save(tmp_path)
    file = tmp_path / "model.safetensors"
    again = problem_model("x:y", problem(weights=file), 9).module
    assert torch.equal(again.weight, first.module.weight)
    with pytest.raises(DataError, match=r"model\.safetensors"):
        problem_model("x:y", problem(weights=file, model=lambda: nn.Linear(3, 1)), 1)


def test_a_model_that_is_made_once_or_differs_by_itself_is_refused():
    module = nn.Linear(2, 1)
    with pytest.raises(ConfigError, match="a new module at each call"):
        problem_model("x:y", problem(model=lambda: module), 1)
    generator = torch.Generator()
    generator.manual_seed(5)

    def unseeded():
        drawn = nn.Linear(2, 1)
        drawn.weight.data.copy_(torch.rand(1, 2, generator=generator))
        return drawn

    with pytest.raises(ConfigError, match="weight differs"):
        problem_model("x:y", problem(model=unseeded, weights="own"), 1)


class Pictures(Dataset):
    """Examples as dictionaries, drawn anew at each reading if ``noise`` is not 0."""

    def __init__(self, noise=0.0):
        self.noise = noise

    def __len__(self):
        return 20

    def __getitem__(self, row):
        return {"x": torch.full((2,), row / 20) + self.noise * torch.rand(2), "y": row / 20}


def read(module, batch):
    return (module(batch["x"])[:, 0] - batch["y"]) ** 2


def test_a_dataset_of_dictionaries_is_read_when_a_batch_needs_it(registered):
    oracle, corpus = registered(problem(examples=Pictures, loss=read))
    rows = corpus.evaluation()
    assert oracle.losses(rows).shape == (len(rows),)
    oracle.check_objective(rows)


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        ({"examples": lambda: Pictures(1.0), "loss": read}, "same example at every reading"),
        ({"loss": lambda m, b: ((m(b[0])[:, 0] - b[1]) ** 2).mean()}, r"a tensor \(2,\) expected"),
        ({"loss": lambda m, b: m(b[0])[:, 0] + torch.rand(len(b[1]))}, "two calls gave"),
        ({"loss": lambda m, b: m(b[0])[:, 0] / 0}, "finite losses"),
    ],
    ids=["random examples", "mean loss", "random loss", "infinite loss"],
)
def test_a_fault_of_a_problem_is_named_before_the_first_round(registered, spoilt, reason):
    oracle, corpus = registered(problem(**spoilt))
    with pytest.raises(ConfigError, match=reason):
        oracle.check_objective(corpus.evaluation())


def test_a_perturbation_that_the_loss_does_not_see_is_refused(registered):
    oracle, corpus = registered(problem())
    replica = oracle.replica

    class Blind:
        def at(self, key, scale):
            return nullcontext()

    trial = ProblemTrial(oracle.task, replica.model, replica.directions, Blind())
    before = replica.digest()
    with pytest.raises(ConfigError, match="only torch functions"):
        trial.check(corpus.evaluation())
    assert replica.digest() == before


def test_buffers_stay_as_they_are_and_one_that_is_written_is_refused(registered):
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm = nn.Linear(2, 1), nn.BatchNorm1d(1)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            return self.norm(self.body(x))

    class Counting(Counter):
        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    oracle, corpus = registered(problem(model=Counter))
    before = oracle.language_model.module.norm.running_mean.clone()
    oracle.check_objective(corpus.evaluation())
    assert torch.equal(oracle.language_model.module.norm.running_mean, before)
    oracle, corpus = registered(problem(model=Counting))
    with pytest.raises(ConfigError, match="calls changed"):
        oracle.check_objective(corpus.evaluation())


def test_parameters_that_the_user_froze_are_not_trained(registered):
    def network():
        module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        module[0].requires_grad_(False)
        return module

    oracle, _ = registered(problem(model=network))
    assert [span.name for span in oracle.replica.model.layout.tensors] == ["1.weight", "1.bias"]


def test_a_loss_without_a_gradient_is_measured_but_not_backpropagated(registered):
    def wrong(module, batch):
        return ((module(batch[0])[:, 0] > batch[1]) * 1.0).detach()

    oracle, corpus = registered(problem(loss=wrong))
    rows = corpus.evaluation()
    oracle.check_objective(rows)
    with pytest.raises(ConfigError, match="use mode zo"):
        oracle.gradient(rows)


def test_examples_of_a_site_are_its_own_and_need_an_evaluation(registered):
    def load(site):
        return torch.full((4 + site.number, 2), float(site.number)), torch.zeros(4 + site.number)

    own = problem(examples=load, evaluation=lambda: (torch.ones(3, 2), torch.zeros(3)))
    _, corpus = registered(own)
    assert [len(corpus.shard(number, 3)) for number in range(3)] == [4, 5, 6]
    with pytest.raises(ConfigError, match="evaluation expected"):
        registered(replace(own, evaluation=None))
    assert load(Site(number=1, count=2))[0].shape == (5, 2)


def test_data_of_a_node_go_to_a_problem_that_takes_a_site(registered):
    _, corpus = registered(problem())
    with pytest.raises(DataError, match="takes no site"):
        Corpus.of_problem(corpus.config, evaluates=False, data="/srv/ward-3")


def test_natural_ids_are_shared_out_whole(registered):
    own = problem(groups=lambda data: (data[0][:, 0] * 40 // 10).int().tolist())
    oracle, corpus = registered(own, **{"num-clients": 2, "partitioner": "natural"})
    values = [
        {int(x * 40 // 10) for x in oracle.task.table.batch(rows(corpus.shard(site, 2)))[0][:, 0]}
        for site in range(2)
    ]
    assert values[0]
    assert values[1]
    assert not values[0] & values[1]


def rows(examples):
    return torch.from_numpy(examples.tokens.astype("int64"))


def test_examples_of_several_sources_make_one_batch():
    table = ExampleTable()
    x = torch.arange(6.0)
    _, first = table.load("a", lambda: (x, x + 1))
    _, second = table.load("b", lambda: TensorDataset(x + 10, x + 11))
    mixed = table.batch(torch.tensor([[first[1]], [second[2]]]))
    assert [part.tolist() for part in mixed] == [[1.0, 12.0], [2.0, 13.0]]
    assert table.load("a", lambda: pytest.fail("loaded twice"))[1] is first


@pytest.mark.parametrize("data", [(torch.ones(2), torch.ones(3)), [], "text", iter(()), None])
def test_what_holds_no_examples_is_refused(data):
    with pytest.raises(DataError, match="expected"):
        source_of(data, None)


def test_ids_are_one_for_each_example():
    with pytest.raises(DataError, match="3 ids expected"):
        examples_of(torch.arange(3).numpy(), ["a"])


@pytest.mark.parametrize(
    "wrong",
    [{"model": 3}, {"loss": None}, {"metrics": {"loss": len}}, {"weights": 3},
     {"examples": lambda site, other: site}],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_a_problem_of_wrong_parts_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        problem(**wrong)


def test_the_digest_covers_the_module_and_what_it_imports_beside_it(app, tmp_path, monkeypatch):
    name = app.partition(":")[0]
    assert set(source_files(name)) == {f"{name}.py", f"{name}_helper.py"}
    (tmp_path / "package").mkdir()
    for file in ("__init__", "deep"):
        (tmp_path / "package" / f"{file}.py").write_text("")
    assert set(source_files("package.deep")) == {"package/__init__.py", "package/deep.py"}
    before = source_digest(app)
    other = tmp_path / "other"
    write_problem(other, name)
    (other / f"{name}_helper.py").write_text("FACTOR = 2.0\n")
    assert source_digest("") != before
    monkeypatch.setattr(sys, "path", [str(other), *sys.path])
    from shared.problem import source

    source._digest.cache_clear()
    assert source_digest(app) != before
    source._digest.cache_clear()


def test_a_missing_module_says_where_it_may_be_put():
    with pytest.raises(ConfigError, match="app-dir"):
        load_problem("no_such_module_here:problem")
