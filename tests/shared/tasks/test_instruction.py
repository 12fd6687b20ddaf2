"""Instruction tuning: the loss is of responses alone, in every mode, on every family of models."""

import json

import numpy as np
import pytest
import torch
from federation import config, ledger_of, replayed
from small_chats import FAMILIES, chat_model
from torch.nn import functional as F  # noqa: N812

from dandelion.engines.local import run_local
from shared.base.errors import ConfigError, DataError
from shared.data.conversations import exchange, to_json
from shared.data.documents import Documents
from shared.generation.chat import chat_form
from shared.models.load import load_model
from shared.models.tokenizers import ByteTokenizer
from shared.replica.replica import digest_of
from shared.tasks.instruction import Instruction
from shared.tasks.scored_tokens import SCORED, split_row, targets_of, tokens_of
from shared.training.corpus import Corpus
from shared.training.oracle import Oracle
from shared.training.validate import configure

BYTES = ByteTokenizer()
DOCS = {"task": "instruction", "dataset": "python-docs", "max_samples": 40, "block_size": 96}
WORDS = [("the film", "was good"), ("a plot", "bad and terrible"), ("it was", "great")] * 4


def documents(pairs, groups=None):
    turns = [to_json(exchange(*pair)) for pair in pairs]
    return Documents([str(p) for p in pairs], groups or ["g"] * len(pairs), conversations=turns)


def task(packing=False):
    return Instruction(chat_form(BYTES), BYTES.start, packing)


def texts_of(row):
    return tuple(BYTES.decode(part) for part in split_row(row.astype(np.int64)))


# --- examples


def test_an_example_is_its_prompt_and_its_marked_response():
    examples = task().examples(documents([("hi", "yes"), ("x", "no, and why")], ["b", "a"]), 64)
    assert [texts_of(row) for row in examples.tokens] == [
        ("User: x\nAssistant:", " no, and why"),
        ("User: hi\nAssistant:", " yes"),
    ]
    assert examples.names == ("a", "b")
    assert examples.tokens[0].max() - SCORED == max(BYTES.encode("no, and why"))


def test_a_long_prompt_loses_its_first_tokens_and_keeps_the_response(caplog):
    examples = task().examples(documents([("x" * 50, "yes"), ("hi", "no")]), 24)
    prompt, response = texts_of(examples.tokens[0])
    assert response == " yes"
    assert prompt.endswith("xxx\nAssistant:")
    assert len(prompt) + len(response) + 1 == 24
    assert "the prompts of 1 of 2 examples lose their first tokens, and 0 responses" in caplog.text


def test_a_response_that_is_too_long_loses_its_end_and_is_counted(caplog):
    examples = task().examples(documents([("hi", "y" * 50)]), 24)
    prompt, response = texts_of(examples.tokens[0])
    assert (prompt, response) == (":", " " + "y" * 22)
    assert "1 responses their last ones" in caplog.text


def test_the_token_that_a_model_starts_with_stays():
    start = np.array([2], np.int64)
    form = chat_form(BYTES)
    cut = Instruction(form, start).examples(documents([("hi", "yes")]), 12).tokens[0]
    assert cut[0] != 2  # the prompt does not begin with it
    turns = form.prompt(exchange("hi", "yes")[:1])

    class Started:
        ends, identity = form.ends, "started"

        def encode(self, _):
            return np.append(start, turns), np.array([9, 1])

    cut = Instruction(Started(), start).examples(documents([("hi", "yes")]), 8).tokens[0]
    assert cut[:6].tolist() == [2, *turns[-5:].tolist()]


def test_packing_joins_examples_of_one_group_as_far_as_they_fit():
    pairs = [("hi", "yes")] * 5
    plain = task().examples(documents(pairs, list("aaabb")), 60)
    packed = task(packing=True).examples(documents(pairs, list("aaabb")), 60)
    assert len(plain) == 5
    assert packed.groups.tolist() == [0, 0, 1]
    assert packed.tokens[0, :48].tolist() == 2 * plain.tokens[0].tolist()
    assert (packed.tokens[1] >= 0).sum() == len(plain.tokens[0])


def test_texts_without_a_response_are_refused_with_the_reason():
    with pytest.raises(DataError, match="prompt and a response expected, got texts alone: a has"):
        task().examples(Documents(["a"], ["g"], no_conversations="a has columns text"), 9)


def test_what_the_task_needs_is_checked(tmp_path):
    with pytest.raises(ConfigError, match="packing = True needs task instruction"):
        configure({"packing": True})
    with pytest.raises(ConfigError, match="response-column = 'b' needs task instruction"):
        configure({"response-column": "b"})
    with pytest.raises(ConfigError, match="objective 'accuracy' with task 'instruction'"):
        Oracle.of(config(tmp_path, **DOCS, objective="accuracy"))
    with pytest.raises(ConfigError, match="scope 'words'"):
        Oracle.of(config(tmp_path, **DOCS, scope="words"))


# --- runs


@pytest.mark.parametrize(
    "more",
    [
        {"mode": "zo", "estimator": "two-point"},
        {"mode": "zo", "scope": "last:1", "estimator": "forward", "packing": True},
        {"mode": "fo", "scope": "lora", "bp_learning_rate": 0.1},
        {"mode": "calibrate", "bp_interval": 2},
        {"mode": "instruct", "bp_interval": 2},
        {"mode": "fedavg"},
    ],
    ids=lambda more: more["mode"] + more.get("scope", ""),
)
def test_every_mode_learns_by_it_and_its_ledger_rebuilds_the_model(tmp_path, more):
    chosen = config(tmp_path, **DOCS, **more, site_eval_fraction=0.2)
    run = run_local(chosen)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["refused_replies"] == 0
    assert summary["evaluation_loss_last"] != summary["evaluation_loss_first"]
    assert summary["sites_loss_last"] > 0
    with ledger_of(chosen) as ledger:
        parameters = replayed(chosen, ledger, to=3)
    assert digest_of(parameters).hex() == summary["digest"]


def test_the_loss_of_responses_falls(tmp_path):
    more = {"mode": "fo", "num_rounds": 12, "bp_batch_size": 8, "bp_learning_rate": 0.3}
    run = run_local(config(tmp_path, **{**DOCS, **more}))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["evaluation_loss_last"] < 0.9 * summary["evaluation_loss_first"]


def test_kept_activations_give_the_same_losses(tmp_path):
    losses = []
    for memory in (0, 64):
        oracle = Oracle.of(config(tmp_path, **DOCS, scope="last:1", keep_memory=memory))
        rows = Corpus.of(config(tmp_path, **DOCS), oracle.language_model).evaluation()
        losses.append(oracle.losses(rows).tolist())
        assert bool(oracle.kept.bytes_in_memory) == bool(memory)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# --- chat models


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_loss_of_its_own_forward_pass(family, tmp_path):
    """Without a pad token, and with more rows of the embedding than tokens."""
    name = chat_model(tmp_path / family, family, more_rows=3, pads=False)
    model = load_model(name, 0)
    mine = Instruction(chat_form(model.tokenizer), model.tokenizer.start)
    rows = torch.from_numpy(mine.examples(documents(WORDS), 32).batch(np.arange(3)))
    with torch.inference_mode():
        each = mine.each(model.module, rows)
        for row, loss in zip(rows, each.tolist(), strict=True):
            alone = row[None, row >= 0]
            scores = model.module(tokens_of(alone)).logits[0]
            expected = F.cross_entropy(scores, targets_of(alone)[0])
            assert loss == pytest.approx(float(expected), rel=1e-4)
