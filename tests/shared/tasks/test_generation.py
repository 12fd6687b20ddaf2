"""Generation: evaluated by what the model writes, on the server and at the sites."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from federation import config, ledger_of
from small_chats import chat_model

from dandelion.engines.local import run_local
from server.ledger.records import ALL_SITES, SERVER
from server.rounds.replies import Expected, RefusedError, check_reply
from shared.base.errors import ConfigError, WireError
from shared.base.metrics import EvalSums
from shared.data.conversations import exchange, to_json
from shared.data.documents import Documents
from shared.protocol.messages import Measured, decode_reply, encode_reply
from shared.training.oracle import Oracle, evaluate

pytest.importorskip("rouge_score", reason="the extra generation is not installed")
DOCS = {"task": "generation", "dataset": "python-docs", "max_samples": 24, "block_size": 64,
        "max_new_tokens": 4, "eval_blocks": 4, "eval_interval": 2}  # fmt: skip
NAMES = ("exact-match", "token-f1", "rouge-l")
REPLY = Measured(1, np.ones(2, np.float32), 3, 1.0, 0.5, bytes(16))
SUMS = {"exact-match": 1.0, "rouge-l": 2.5}


@pytest.mark.parametrize(
    "more", [{"mode": "zo", "scope": "last:1"}, {"mode": "fo", "scope": "lora"}]
)
def test_scores_are_evaluated_on_the_server_and_at_the_sites(tmp_path, more):
    chosen = config(tmp_path, **DOCS, **more, site_eval_fraction=0.2)
    run = run_local(chosen)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["refused_replies"] == 0
    with ledger_of(chosen) as ledger:
        for name in NAMES:
            assert [round_ for round_, _ in ledger.scores(SERVER)[name]] == [0, 2, 3]
            assert 0 <= summary[f"evaluation_{name}_last"] <= 1
            assert 0 <= summary[f"sites_{name}_last"] <= 1
            assert len(ledger.scores(ALL_SITES)[name]) >= 1
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in NAMES:
        assert [row[name] != "" for row in rows] == [False, True, True]
        assert float(rows[-1][name]) == pytest.approx(summary[f"evaluation_{name}_last"])


def test_a_model_that_says_what_is_expected_has_full_scores(tmp_path):
    """Trained on one exchange until it writes it, through the chat template of its tokenizer."""
    name = chat_model(tmp_path / "llama")
    chosen = config(tmp_path, **{**DOCS, "model": name, "dataset": "topics"})
    oracle = Oracle.of(chosen)
    turns = [to_json(exchange("the film", "was good and terrible"))] * 2
    documents = Documents(["", ""], ["g", "g"], conversations=turns)
    rows = torch.from_numpy(oracle.task.examples(documents, 32).batch(np.arange(2)))
    before = evaluate(oracle, rows)
    assert before.sums["exact-match"] == 0
    flat = oracle.replica.model.flat
    for _ in range(40):
        flat -= 0.5 * oracle.gradient(rows)[1]
    after = evaluate(oracle, rows)
    assert after.loss < before.loss
    assert after.scores() == dict.fromkeys(NAMES, 1.0)


def test_a_response_must_fit_the_model(tmp_path):
    with pytest.raises(ConfigError, match=r"max-new-tokens below 128 expected, .* got 128"):
        Oracle.of(config(tmp_path, **{**DOCS, "max_new_tokens": 128}))
    with pytest.raises(ConfigError, match="packing with task 'generation'"):
        config(tmp_path, **DOCS, packing=True)


# --- on the wire


def test_scores_travel_by_name():
    reply = replace(REPLY, outcome=EvalSums(4.0, 3, sums=SUMS))
    twin = decode_reply(encode_reply(reply))
    assert twin.outcome.sums == SUMS
    assert (twin.outcome.total, twin.outcome.examples) == (4.0, 3)
    expected = Expected(1, 2, classes=0, scores=tuple(SUMS))
    assert len(encode_reply(reply)) <= expected.most_bytes
    check_reply(twin, expected, bytes(16))


@pytest.mark.parametrize(
    "sums", [{}, {"rouge-l": 1.0}, {**SUMS, "more": 1.0}, {**SUMS, "rouge-l": float("nan")}]
)
def test_other_scores_than_the_tasks_are_refused(sums):
    reply = replace(REPLY, outcome=EvalSums(4.0, 3, sums=sums))
    with pytest.raises(RefusedError, match="expected"):
        check_reply(reply, Expected(1, 2, classes=0, scores=tuple(SUMS)), bytes(16))


def test_damaged_scores_are_no_reply(monkeypatch):
    from shared.protocol import outcomes

    reply = replace(REPLY, outcome=EvalSums(4.0, 3, sums=SUMS))
    encoded = outcomes.encode_outcome(reply.outcome)
    at = outcomes.outcome_bytes(0)
    for broken in (encoded[:-1], encoded[:at], encoded[:at] + bytes(4), encoded[:at] + b"\xff" * 9):
        with pytest.raises(WireError, match="scores"):
            outcomes.decode_sums(broken, at)
