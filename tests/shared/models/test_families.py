"""Every family of models by random weights: each task is measured, or is refused by name."""

import families
import numpy as np
import pytest
import torch
from federation import config

from shared.base.errors import ConfigError
from shared.data.conversations import exchange, to_json
from shared.data.documents import Documents
from shared.randomness.streams import Key
from shared.training.oracle import Oracle

pytestmark = pytest.mark.slow
TEXTS = [f"the film was {('good', 'bad')[n % 2]} {'it ' * (n % 3)}" for n in range(8)]
DOCUMENTS = Documents(
    TEXTS * 4, [f"g{n % 2}" for n in range(32)], [n % 2 for n in range(32)], ("bad", "good"),
    choices=[("bad plot", "good", "it")[: 2 + n % 2] for n in range(32)],
    numbers=[float(n % 2) for n in range(32)],
    conversations=[to_json(exchange(text, f"it was {'bad ' * (n % 3)}good"))
                   for n, text in enumerate(TEXTS * 4)],
)  # fmt: skip
TASKS = {
    "language-modelling": {},
    "classification": {"label_words": "terrible, great"},
    "whole labels": {"task": "classification", "label_words": "bad film, bad plot"},
    "multiple-choice": {"choice_prompt": "the {text} It"},
    "regression": {},
    "instruction": {},
    "generation": {"max_new_tokens": 4},
}
HEADED = ("classification", "regression")
REFUSED = {("mamba", "regression"): "a head for MambaForCausalLM expected"}
ALL = [*families.CAUSAL, *families.ENCODERS, "t5"]
ALL.remove("qwen2")  # transformers reads every tokenizer of it as its own, which knows no word
KEYS = [Key(7, 3, 0, k) for k in range(3)]


def refusal(family, task):
    """Words of the error that a task is refused with; None if it works."""
    if family in families.CAUSAL or task in (*HEADED, "whole labels"):
        return REFUSED.get((family, task))
    return "predicts no next token"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def folder(family):
        if family not in made:
            made[family] = families.saved(tmp_path_factory.mktemp("families") / family, family)
        return made[family]

    return folder


def oracle_of(family, task, folder_of, tmp_path, **more):
    settings = {"task": task, **TASKS[task], "model": folder_of(family), "block_size": 12}
    return Oracle.of(config(tmp_path, **{**settings, **more}))


def rows_of(oracle, count=4):
    return torch.from_numpy(oracle.task.examples(DOCUMENTS, 12).batch(np.arange(count)))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ALL)
def test_a_task_is_measured_and_has_the_slopes_of_backpropagation(
    family, task, folder_of, tmp_path
):
    """What zo measures along a direction is what fo's gradient says: all modes are made of both."""
    if reason := refusal(family, task):
        with pytest.raises(ConfigError, match=reason):
            oracle_of(family, task, folder_of, tmp_path)
        return
    oracle = oracle_of(family, task, folder_of, tmp_path)
    rows = rows_of(oracle)
    before = oracle.replica.model.flat.clone()
    eps, key = 2e-3, KEYS[0]
    losses = []
    for scale in (eps, -eps):
        with oracle.perturber.at(key, scale):
            losses.append(oracle.loss(rows))
    loss, gradient = oracle.gradient(rows)
    assert loss == pytest.approx(oracle.losses(rows).mean().item(), rel=1e-5)
    direction = torch.zeros_like(gradient)
    oracle.replica.directions.add_to_(direction, [key], [1.0])
    slope = float(direction @ gradient)
    measured = (losses[0] - losses[1]) / (2 * eps)
    assert measured == pytest.approx(slope, rel=0.1, abs=0.05 * float(gradient.norm()) + 1e-3)
    assert torch.equal(oracle.replica.model.flat, before)


def is_alone(family, task):
    """Whether a forward pass has a function without a batched form: Mamba's and T5's own.

    Bloom reads a row for each continuation, and so do its batches.
    """
    return family in ("mamba", "t5") or (
        family == "bloom" and task in ("whole labels", "multiple-choice")
    )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ALL)
def test_directions_at_once_give_the_losses_of_one_by_one(family, task, folder_of, tmp_path):
    if refusal(family, task):
        return
    oracle = oracle_of(family, task, folder_of, tmp_path, keep_memory=0)
    rows = rows_of(oracle)
    at_once = torch.stack([rows] * 2 * len(KEYS))
    scales = [0.01] * len(KEYS) + [-0.01] * len(KEYS)
    if is_alone(family, task):
        with pytest.raises(ConfigError, match=r"on parameter .* cannot be batched"):
            oracle.parallel.at([*KEYS, *KEYS], scales, at_once)
        return
    losses = oracle.parallel.at([*KEYS, *KEYS], scales, at_once).tolist()
    alone = []
    for key, scale in zip([*KEYS, *KEYS], scales, strict=True):
        with oracle.perturber.at(key, scale):
            alone.append(oracle.loss(rows))
    assert losses == pytest.approx(alone, rel=1e-5)
