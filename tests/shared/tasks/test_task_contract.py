"""What every task promises: a registered task gets these tests without an edit here."""

import numpy as np
import pytest
import torch

from shared.config.schema import Config
from shared.data.conversations import exchange, to_json
from shared.data.documents import Documents
from shared.models.load import load_model, with_number_head
from shared.tasks.task import TASKS, task_of

LENGTH = 32
TURNS = [to_json(exchange(f"film {n}", f"seen {n} times")) for n in range(12)]
DOCUMENTS = Documents(
    [f"{('dull', 'fine')[n % 2]} film number {n}, " * 2 for n in range(12)],
    [f"group {n % 3}" for n in range(12)],
    [n % 2 for n in range(12)],
    ("rotten", "fresh"),
    conversations=TURNS,
    numbers=[float(n % 2) for n in range(12)],
    choices=[("dull", "fine", "neither")[: 2 + n % 2] for n in range(12)],
)
NEEDS = {
    "multiple-choice": {"choice_prompt": "{text} "},
    "classification": {"label_words": "terrible, great", "prompt": "{text} It was "},
}


@pytest.fixture(params=TASKS.names())
def name(request):
    return request.param


@pytest.fixture
def model(name):
    plain = load_model("byte-gpt", 0)
    return with_number_head(plain, 0) if name == "regression" else plain


@pytest.fixture
def task(name, model):
    settings = NEEDS.get(name, {})
    config = Config(task=name, model="byte-gpt", block_size=LENGTH, **settings)
    return task_of(config, model)


@pytest.fixture
def module(model):
    return model.module


@pytest.fixture
def rows(task):
    return torch.from_numpy(task.examples(DOCUMENTS, LENGTH).batch(np.arange(6)))


def test_examples_are_the_same_on_every_call_and_fit_the_length(task):
    first, second = task.examples(DOCUMENTS, LENGTH), task.examples(DOCUMENTS, LENGTH)
    assert np.array_equal(first.tokens, second.tokens)
    assert (np.cumsum(first.tokens < 0, 1) == 0).sum(1).max() <= LENGTH  # of the text alone
    assert len(first.groups) == len(first) > 5


def test_examples_of_a_group_lie_beside_each_other(task):
    examples = task.examples(DOCUMENTS, LENGTH)
    assert (np.diff(examples.groups) >= 0).all()
    assert set(examples.names) == set(DOCUMENTS.groups)


def test_the_loss_is_a_scalar_that_can_be_differentiated(task, module, rows):
    loss = task.loss(module, rows)
    assert loss.shape == ()
    (gradient,) = torch.autograd.grad(loss, [module.transformer.wte.weight])
    assert gradient.isfinite().all()
    assert gradient.any()


def test_the_loss_is_the_mean_over_the_examples(task, module, rows):
    with torch.inference_mode():
        each = task.each(module, rows)
        assert each.shape == (len(rows),)
        assert each.dtype == torch.float64
        assert float(task.loss(module, rows)) == pytest.approx(each.mean().item(), rel=1e-6)


def test_the_outcome_has_the_loss_and_as_many_choices_as_examples(task, module, rows):
    with torch.inference_mode():
        outcome = task.outcome(module, rows)
        assert outcome.loss == pytest.approx(float(task.loss(module, rows)), rel=1e-6)
    assert outcome.examples == len(rows)
    if task.classes:
        assert outcome.confusion.shape == (task.classes, task.classes)
        assert outcome.confusion.sum() == len(rows)


def test_measuring_changes_no_parameter(task, module, rows):
    before = [parameter.detach().clone() for parameter in module.parameters()]
    with torch.inference_mode():
        task.loss(module, rows)
        task.outcome(module, rows)
    assert all(map(torch.equal, before, module.parameters()))
