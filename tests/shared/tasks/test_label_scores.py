"""Labels of several words: their scores by every family, in every mode, and what is refused."""

import families
import numpy as np
import pytest
import small_models
import torch
from federation import config, federate, ledger_of, replayed
from tiny_reviews import CLASSES, TEXTS, folders, reviews  # noqa: F401  (fixtures)

from shared.base.errors import ConfigError
from shared.data.documents import Documents
from shared.generation.prompt_frame import prompt_frame
from shared.likelihood.continuations import ContinuationTree, reads_trees, score_continuations
from shared.models.load import load_model
from shared.tasks.label_scores import LabelScores, whole_labels
from shared.training.oracle import Oracle

CONTINUATIONS = [(5, 6, 7), (5, 8), (9,), (10, 11, 12, 13)]
# the first two begin alike, and "good" begins another
WORDS = "terrible plot, terrible film, good, good film"
LABELS = {**CLASSES, "label_words": WORDS, "prompt": "{text} It was"}
ALONE = {"bloom", "mamba"}  # positions by a mask, and no attention at all


def by_hand(module, text, label):
    """Σ log p of a label's tokens, from one plain pass over text and label."""
    ids = torch.tensor([[*text, *label]])
    log_p = module(ids, use_cache=False).logits[0].float().log_softmax(-1)
    return sum(log_p[len(text) - 1 + at, token].item() for at, token in enumerate(label))


@pytest.mark.parametrize("family", families.CAUSAL)
def test_scores_are_those_of_plain_passes_in_every_family(family):
    module = families.causal_model(family)
    tokens, lengths = torch.randint(4, 16, (3, 6)), torch.tensor([6, 3, 1])
    with torch.inference_mode():
        tree = ContinuationTree.of(CONTINUATIONS)
        scores = score_continuations(module, tokens, lengths, tree)
        for row, length in enumerate(lengths):
            text = tokens[row, :length].tolist()
            wanted = [by_hand(module, text, label) for label in CONTINUATIONS]
            assert scores[row].tolist() == pytest.approx(wanted, abs=2e-5)
    assert reads_trees(module) == (family not in ALONE)


def test_a_text_longer_than_a_sliding_window_is_scored_by_rows_of_their_own():
    module = families.causal_model("llama")
    module.config.sliding_window = 8
    widths = []
    module.model.register_forward_pre_hook(
        lambda _, args, named: widths.append(named["input_ids"].shape), with_kwargs=True
    )
    tree = ContinuationTree.of([(5, 6), (7,)])
    with torch.inference_mode():
        reads_trees(module)
        widths.clear()
        score_continuations(module, torch.ones(3, 4).long(), torch.tensor([4, 2, 3]), tree)
        score_continuations(module, torch.ones(3, 7).long(), torch.tensor([7, 2, 3]), tree)
    assert widths == [(3, 4 + 2), (3 * 2, 7 + 1)]


def test_labels_in_several_passes_have_the_scores_of_one(monkeypatch):
    module = families.causal_model("qwen2")
    labels = LabelScores(tuple((4 + n // 8, 4 + n % 8, 5) for n in range(60)), False)
    tokens, lengths = torch.randint(4, 16, (2, 5)), torch.tensor([5, 2])
    with torch.inference_mode():
        whole = labels(module, tokens, lengths)
        monkeypatch.setattr("shared.tasks.label_scores.MOST_NODES", 7)
        parts = LabelScores(labels.labels, False)
        assert torch.allclose(parts(module, tokens, lengths), whole, atol=1e-5)
    assert whole.shape == (2, 60)
    assert len(parts._on(tokens.device)) == 20


def test_a_mean_is_divided_by_the_number_of_tokens():
    module = families.causal_model("llama")
    tokens, lengths = torch.randint(4, 16, (2, 5)), torch.tensor([5, 2])
    labels = ((5, 6, 7), (8,))
    with torch.inference_mode():
        sums, means = (LabelScores(labels, is_mean)(module, tokens, lengths) for is_mean in (0, 1))
    assert torch.allclose(means, sums / torch.tensor([3, 1]))


def test_scores_have_the_slopes_of_their_differences():
    module, labels = families.causal_model("llama").double(), LabelScores(((5, 6), (5, 7)), False)
    tokens, lengths = torch.randint(4, 16, (2, 5)), torch.tensor([5, 2])
    weight, step = module.model.layers[0].mlp.up_proj.weight, 1e-3

    def loss():
        return labels(module, tokens, lengths).log_softmax(1)[:, 0].sum()

    (slope,) = torch.autograd.grad(loss(), [weight])
    direction = torch.randn_like(weight)
    with torch.no_grad():
        weight += step * direction
        ahead = loss().item()
        weight -= 2 * step * direction
        measured = (ahead - loss().item()) / (2 * step)
    assert measured == pytest.approx((slope * direction).sum().item(), rel=0.02)


def test_labels_that_were_evaluated_first_can_be_backpropagated():
    module, labels = families.causal_model("llama"), LabelScores(((5, 6), (5, 7)), False)
    tokens, lengths = torch.randint(4, 16, (2, 5)), torch.tensor([5, 2])
    with torch.inference_mode():
        evaluated = labels(module, tokens, lengths)
    scores = labels(module, tokens, lengths)
    scores.sum().backward()
    assert torch.allclose(scores, evaluated)
    assert module.model.embed_tokens.weight.grad.any()


# --- which labels are scored whole


def tokens_of(words, label_scoring="auto"):
    frame = prompt_frame(load_model("byte-gpt", 0).tokenizer, "{text} It was ", "text")
    return whole_labels(frame, label_scoring, [word.strip() for word in words.split(",")])


def test_labels_that_begin_with_different_tokens_are_scored_by_these_as_ever():
    assert tokens_of("great, terrible") is None
    assert tokens_of("great, good", label_scoring="first") is None  # and then refused
    assert tokens_of("great, terrible", label_scoring="sum").longest == len("terrible")
    assert not tokens_of("great, good").is_mean
    assert tokens_of("great, good", label_scoring="mean").is_mean


def test_a_label_that_begins_another_gets_an_end():
    assert [label[-1] for label in tokens_of("card, card lost").labels] == [1, 1]
    assert [label[-1] for label in tokens_of("card, cash").labels] == [ord("d") + 3, ord("h") + 3]


def test_labels_of_the_same_tokens_are_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"'bank card' and 'cash card', which are both"):
        Oracle.of(config(tmp_path, model=folders["words"],
                         **{**LABELS, "label_words": "bank card, cash card"}))  # fmt: skip


def test_a_label_leaves_room_for_itself_in_the_block(folders, tmp_path):
    oracle = Oracle.of(config(tmp_path, model=folders["words"], **LABELS))
    longest = oracle.task.logits.longest
    assert longest == 3  # good film, and the end
    documents = Documents(["film " * 40], ["a"], [2])
    length = CLASSES["block_size"]
    assert oracle.task.examples(documents, length).tokens.shape == (1, length - longest + 1)
    with pytest.raises(ConfigError, match="the length of the prompt and the longest label; got 4"):
        oracle.task.examples(documents, 4)


# --- runs


@pytest.mark.parametrize("mode", ["zo", "fo", "calibrate", "instruct", "fedavg"])
def test_every_mode_steps_with_labels_of_several_words(mode, folders, tmp_path):
    c = config(tmp_path, model=folders["words"], mode=mode, num_clients=2, num_rounds=2,
               bp_interval=2, **LABELS)  # fmt: skip
    run = federate(c)
    assert run.summary["refused_replies"] == 0
    assert run.summary["evaluation_loss_last"] != run.summary["evaluation_loss_first"]
    with ledger_of(c) as ledger:
        assert torch.equal(replayed(c, ledger, 2), run.flat)


def test_the_loss_is_the_cross_entropy_of_the_labels_likelihoods(folders, tmp_path):
    oracle = Oracle.of(config(tmp_path, model=folders["words"], **LABELS))
    documents = Documents(TEXTS[:4], TEXTS[:4], [0, 1, 2, 3])
    rows = torch.from_numpy(oracle.task.examples(documents, 12).batch(np.arange(4)))
    losses = []
    for row in rows.tolist():
        text = [token for token in row[1:] if token >= 0]
        labels = [[*(small_models.VOCABULARY[word] for word in words.split()), 3]
                  for words in WORDS.split(", ")]  # fmt: skip
        scores = [by_hand(oracle.language_model.module, text, label) for label in labels]
        losses.append(-torch.tensor(scores).log_softmax(0)[row[0]].item())
    assert oracle.losses(rows).tolist() == pytest.approx(losses, abs=1e-4)


@pytest.mark.parametrize("scope", ["words", "prior"])
def test_a_readout_is_added_to_the_scores_of_whole_labels(scope, folders, tmp_path):
    plain = Oracle.of(config(tmp_path, model=folders["words"], **LABELS))
    c = config(tmp_path, "readout", model=folders["words"], scope=scope, feature_scaling="none",
               num_clients=2, learning_rate=0.5, num_rounds=3, **LABELS)  # fmt: skip
    oracle = Oracle.of(c)
    documents = Documents(TEXTS[:8], TEXTS[:8], [n % 4 for n in range(8)])
    rows = torch.from_numpy(oracle.task.examples(documents, 12).batch(np.arange(8)))
    assert oracle.loss(rows) == pytest.approx(plain.loss(rows), abs=1e-5)
    run = federate(c)
    assert run.summary["evaluation_loss_last"] < run.summary["evaluation_loss_first"]


def test_a_thousand_labels_are_classes(tmp_path):
    words = ", ".join(f"w{number:03d}" for number in range(1000))
    oracle = Oracle.of(config(tmp_path, task="classification", model="byte-gpt", label_words=words,
                              prompt="{text}: ", block_size=24))  # fmt: skip
    documents = Documents(["a text", "another"], ["a", "b"], [999, 3])
    rows = torch.from_numpy(oracle.task.examples(documents, 24).batch(np.arange(2)))
    outcome = oracle.outcome(rows)
    assert outcome.confusion.shape == (1000, 1000)
    assert outcome.loss == pytest.approx(np.log(1000), abs=1)


@pytest.mark.parametrize("count", [3, 20, 151])
def test_an_encoder_has_any_number_of_classes(count, folders, tmp_path):
    words = ", ".join(f"class {number}" for number in range(count))
    c = config(tmp_path, model=folders["head"], **{**CLASSES, "label_words": words})
    oracle = Oracle.of(c)
    assert oracle.language_model.module.config.num_labels == count
    documents = Documents(TEXTS, TEXTS, [n * (count - 1) // 59 for n in range(60)])
    rows = torch.from_numpy(oracle.task.examples(documents, 12).batch(np.arange(60)))
    loss, gradient = oracle.gradient(rows)
    assert loss == pytest.approx(np.log(count), abs=1.5)
    assert gradient.any()
