"""Classification: by a head or by words after a prompt, in every mode, with scores as defined."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import small_models
import torch
from federation import Network, altered, config, federate, is_reply, ledger_of, replayed, select
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_reviews import BAD, CLASSES, GOOD, TEXTS, folders, reviews  # noqa: F401  (fixtures)
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaForSequenceClassification

from client.site.zeroth_order import Queries
from dandelion.comparisons.curves import AXES, points_of
from dandelion.comparisons.methods import configurations
from dandelion.comparisons.presentation import table_rows
from dandelion.engines.local import run_local
from server.ledger.records import ALL_SITES
from shared.base.errors import ConfigError, DataError, WireError
from shared.base.flat import flatten
from shared.base.metrics import EvalSums, accuracy, confusion_of, f1
from shared.config.sections import DataSettings
from shared.data.documents import Documents
from shared.data.examples import examples_with_labels
from shared.directions import DIRECTIONS
from shared.estimation.perturber import Perturber
from shared.generation.prompt_frame import prompt_frame
from shared.models.load import load_model
from shared.protocol.messages import Measured, decode_reply, encode_reply
from shared.protocol.site_id import SiteId
from shared.randomness.streams import Key
from shared.tasks.classification import Classification, label_words
from shared.tasks.verbaliser import Verbaliser
from shared.training.oracle import Oracle, evaluate
from shared.training.site_data import SiteData


def examples_of(oracle, length=12):
    documents = Documents(TEXTS, TEXTS, [n % 2 for n in range(60)])
    return oracle.task.examples(documents, length)


def rows_of(oracle, length=12):
    return torch.from_numpy(examples_of(oracle, length).batch(np.arange(8)))


@pytest.fixture(params=["head", "words"])
def chosen(request, folders):
    return {"model": folders[request.param], **CLASSES}


# --- examples


def test_an_example_is_its_class_its_tokens_and_padding():
    documents = Documents(["b b b", "a", "c"], ["y", "x", "y"], [1, 0, 1])
    examples = examples_with_labels(documents, 2, lambda text: np.arange(len(text.split())))
    assert examples.names == ("x", "y")
    assert examples.groups.tolist() == [0, 1, 1]
    assert examples.batch(np.arange(3)).tolist() == [
        [0, 0, -1, -1],
        [1, 0, 1, 2],
        [1, 0, -1, -1],
    ]
    assert examples.take(np.array([2])).labels.tolist() == [1]


@pytest.mark.parametrize("labels", [None, [0, 2]])
def test_documents_need_a_label_of_each_class(labels):
    with pytest.raises(DataError, match="labels"):
        examples_with_labels(Documents(["a", "b"], ["", ""], labels), 2, lambda text: np.zeros(1))


# --- a head


def test_a_new_head_follows_from_the_seed_and_the_encoder_is_the_files(folders):
    names = ("rotten", "fresh")
    first, again, other = (load_model(folders["head"], seed, names) for seed in (1, 1, 2))
    assert first.has_head
    assert first.module.config.id2label == {0: "rotten", 1: "fresh"}
    for name, parameter in first.module.named_parameters():
        assert torch.equal(parameter, again.module.get_parameter(name))
        drawn = name == "classifier.weight"
        assert torch.equal(parameter, other.module.get_parameter(name)) == (not drawn), name
    assert first.module.classifier.weight.std().item() == pytest.approx(0.3, rel=0.5)
    assert not first.module.classifier.bias.any()


def test_the_loss_of_a_head_is_transformers_own_without_dropout(folders, tmp_path):
    oracle = Oracle.of(config(tmp_path, model=folders["head"], **CLASSES))
    rows, module = rows_of(oracle), oracle.language_model.module
    losses = []
    for row in rows:
        ids = row[1:][row[1:] >= 0]
        losses.append(module(ids[None], labels=row[:1]).loss.item())
    assert oracle.loss(rows) == pytest.approx(np.mean(losses), abs=1e-6)
    assert oracle.loss(rows) == oracle.loss(rows)
    assert rows[0, 1:4].tolist() == [2, 11, 15]  # [CLS] terrible plot


def test_a_folder_keeps_the_head_that_it_has(folders, tmp_path):
    model = load_model(folders["head"], 1, ("rotten", "fresh"))
    model.save(tmp_path / "saved")
    loaded = load_model(str(tmp_path / "saved"), 9, ("other", "names"))
    assert torch.equal(loaded.module.classifier.weight, model.module.classifier.weight)
    assert loaded.module.config.id2label == {0: "rotten", 1: "fresh"}
    three = config(tmp_path, **{**CLASSES, "label_words": "a, b, c"}, model=str(tmp_path / "saved"))
    with pytest.raises(ConfigError, match=r"label-words: 2 expected.*got .'a', 'b', 'c'."):
        Oracle.of(three)


def test_a_head_on_a_causal_model_reads_the_end_of_each_text(tmp_path):
    folder, body = tmp_path / "llama", small_models.llama().config
    body.num_labels = 2
    torch.manual_seed(0)
    small_models.saved(folder, LlamaForSequenceClassification(body), framed=False)
    oracle = Oracle.of(config(tmp_path, model=str(folder), **CLASSES))
    rows, module = rows_of(oracle), oracle.language_model.module
    alone = [oracle.loss(row[None][:, : 1 + int((row[1:] >= 0).sum())]) for row in rows]
    assert oracle.loss(rows) == pytest.approx(np.mean(alone), abs=1e-6)
    assert type(module) is LlamaForSequenceClassification


def test_an_encoder_cannot_model_language(folders, tmp_path):
    with pytest.raises(ConfigError, match="predicts no next token: set task classification"):
        Oracle.of(config(tmp_path, model=folders["head"]))


@pytest.mark.slow
def test_perturbed_parameters_of_a_classifier_are_those_in_place(folders):
    """Parameter by parameter, with a scratch that holds none of them whole."""
    model = load_model(folders["head"], 1, ("a", "b"))
    flat, key = flatten(model.module), Key(7, 3, 0, 1)
    directions = DIRECTIONS["rademacher"](flat.layout)
    rows = torch.tensor([[0, 2, 5, 6, 3], [1, 2, 9, 3, -1]])
    task = Classification(2, None, _head(model))
    before = flat.flat.clone()
    with torch.inference_mode():
        with Perturber(flat, directions, scratch=64).at(key, 0.05):
            measured = float(task.loss(model.module, rows))
        assert torch.equal(flat.flat, before)
        directions.add_to_(flat.flat, [key], [0.05])
        in_place = float(task.loss(model.module, rows))
        for span in flat.layout.tensors:
            flat.flat.copy_(before)
            alone = flatten_only(model.module, span.name)
            with Perturber(alone, DIRECTIONS["rademacher"](alone.layout), 64).at(key, 0.05):
                one = float(task.loss(model.module, rows))
            DIRECTIONS["rademacher"](alone.layout).add_to_(alone.flat, [key], [0.05])
            assert one == pytest.approx(float(task.loss(model.module, rows)), abs=1e-6), span.name
            flat = rebind(model.module, before)
    assert measured == pytest.approx(in_place, abs=1e-6)


def _head(model):
    from shared.tasks.classification import head_logits

    return head_logits(model.tokenizer.pad)


def flatten_only(module, name):
    return flatten(module, lambda other: other == name)


def rebind(module, before):
    model = flatten(module)
    model.flat.copy_(before)
    return model


# --- words after a prompt


def test_the_loss_of_words_is_that_of_a_hand_computation(folders, tmp_path):
    oracle = Oracle.of(config(tmp_path, model=folders["words"], **CLASSES))
    rows, module = rows_of(oracle), oracle.language_model.module
    great, terrible = small_models.VOCABULARY["great"], small_models.VOCABULARY["terrible"]
    losses = []
    for row in rows:
        ids = row[1:][row[1:] >= 0]
        last = module(ids[None]).logits[0, -1]
        words = torch.stack([last[terrible], last[great]])
        losses.append(-F.log_softmax(words, 0)[row[0]].item())
    assert oracle.loss(rows) == pytest.approx(np.mean(losses), abs=1e-6)


def test_the_prompt_survives_a_text_that_is_too_long(folders):
    tokenizer = load_model(folders["words"], 1).tokenizer
    frame = prompt_frame(tokenizer, "the {text} It was", "text")
    verbaliser = Verbaliser.of(tokenizer, frame, ("good", "bad"))
    it, was = (small_models.VOCABULARY[word] for word in ("It", "was"))
    tokens = verbaliser.encode("film " * 50, 8).tolist()
    assert len(tokens) == 8
    assert tokens[:2] == [small_models.VOCABULARY["the"], small_models.VOCABULARY["film"]]
    assert tokens[-2:] == [it, was]
    with pytest.raises(ConfigError, match="block-size above 3 expected"):
        verbaliser.encode("film", 3)


def test_a_prompt_may_name_the_text_twice(folders):
    tokenizer = load_model(folders["words"], 1).tokenizer
    frame = prompt_frame(tokenizer, "the {text} and {text} It was", "text")
    verbaliser = Verbaliser.of(tokenizer, frame, ("good", "bad"))
    the, also, it, was, film, plot = (
        small_models.VOCABULARY[word] for word in ("the", "and", "It", "was", "film", "plot")
    )
    whole = [the, film, plot, also, film, plot, it, was]
    assert verbaliser.encode("film plot", 64).tolist() == whole
    assert verbaliser.encode("film plot", 7).tolist() == [the, film, also, film, it, was]
    with pytest.raises(ConfigError, match="block-size above 5 expected"):
        verbaliser.encode("film", 5)


WORDS = ("great", "good")  # begin with the same byte, and with the same token after a space


def test_words_that_begin_alike_are_refused():
    tokenizer = load_model("byte-gpt", 1).tokenizer
    with pytest.raises(ConfigError, match=r"first tokens differ.*'great': 35, 'good': 35"):
        Verbaliser.of(tokenizer, prompt_frame(tokenizer, "{text} It was", "text"), WORDS)
    frame = prompt_frame(tokenizer, "{text} It was ", "text")
    assert frame.label("great")[0] == ord("g") + 3
    with pytest.raises(ConfigError, match=r"a text with \{text\} in it expected"):
        prompt_frame(tokenizer, "It was", "text")


@pytest.mark.parametrize("words", ["", "one", "same, same"])
def test_label_words_are_required(words, folders, tmp_path):
    with pytest.raises(ConfigError, match="label-words: a word for each class expected"):
        Oracle.of(config(tmp_path, model=folders["words"], **{**CLASSES, "label_words": words}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rotten, fresh", ("rotten", "fresh")),
        ("card lost,card arrival,", ("card lost", "card arrival")),
        ('heart failure, "no diagnosis, sent home"', ("heart failure", "no diagnosis, sent home")),
        ('"a ""b""", 5" bed', ('a "b"', '5" bed')),
    ],
)
def test_a_class_with_a_comma_stands_in_quotation_marks(text, words):
    assert label_words(DataSettings(label_words=text)) == words


# --- scores


def test_scores_are_those_of_the_definition():
    classes, choices = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0, 1, 1, 1, 1, 1, 0])
    confusion = confusion_of(classes, choices, 2)
    assert confusion.tolist() == [[1, 2], [1, 3]]
    precision, recall = 3 / 5, 3 / 4
    assert accuracy(confusion) == pytest.approx(4 / 7)
    assert f1(confusion) == pytest.approx(2 * precision * recall / (precision + recall))


def test_f1_of_several_classes_is_their_mean_and_absent_ones_count_nothing():
    confusion = confusion_of(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 3)
    each = [2 * 1 / (2 * 1 + 1), 2 * 2 / (2 * 2 + 1), 0]
    assert f1(confusion) == pytest.approx(sum(each) / 3)
    assert f1(np.zeros((2, 2), np.int64) + np.diag([4, 0])) == 0


def test_outcomes_add_up_whatever_the_batches():
    parts = [
        EvalSums(2.0, 3, np.array([[1, 1], [0, 1]])),
        EvalSums(1.0, 1, np.array([[0, 0], [0, 1]])),
    ]
    whole = sum(parts, EvalSums(0.0, 0))
    assert (whole.loss, whole.examples) == (0.75, 4)
    assert whole.scores()["accuracy"] == 0.75
    assert EvalSums(1.0, 2).scores() == {}


# --- federations


@pytest.mark.parametrize("mode", ["zo", "fo", "calibrate", "instruct", "fedavg"])
def test_every_mode_steps_a_classifier_and_is_replayed(mode, chosen, tmp_path):
    c = config(tmp_path, mode=mode, num_clients=2, bp_interval=2, **chosen)
    run = federate(c)
    assert run.summary["refused_replies"] == 0
    assert run.summary["evaluation_loss_last"] != run.summary["evaluation_loss_first"]
    with ledger_of(c) as ledger:
        assert torch.equal(replayed(c, ledger, 3), run.flat)
        assert list(ledger.scores()) == ["accuracy", "f1", "macro_f1"]


def test_first_order_rounds_learn_the_classes(chosen, tmp_path):
    run = federate(config(tmp_path, mode="fo", num_rounds=20, learning_rate=0.1, num_clients=2,
                            bp_batch_size=16, **chosen))  # fmt: skip
    assert run.summary["evaluation_accuracy_last"] == 1.0
    assert run.summary["evaluation_f1_last"] == 1.0


def test_scalars_alone_train_a_head(folders, tmp_path):
    run = federate(config(tmp_path, model=folders["head"], scope="head", num_rounds=20,
                            queries=16, learning_rate=0.02, num_clients=2, zo_batch_size=16,
                            **CLASSES))  # fmt: skip
    assert run.summary["evaluation_loss_last"] < 0.9 * run.summary["evaluation_loss_first"]


def test_a_frozen_encoder_leaves_the_head_and_its_pooler(folders, tmp_path):
    oracle = Oracle.of(config(tmp_path, model=folders["head"], scope="head", **CLASSES))
    assert {span.name for span in oracle.replica.model.layout.tensors} == {
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight",
        "classifier.bias",
    }  # fmt: skip


def test_adapters_of_an_encoder_come_with_its_head(folders, tmp_path):
    names = {
        span.name.rpartition(".lora_")[0] or span.name
        for span in Oracle.of(
            config(tmp_path, model=folders["head"], scope="lora", **CLASSES)
        ).replica.model.layout.tensors
    }
    assert {"classifier.weight", "bert.pooler.dense.bias"} < names
    assert "bert.encoder.layer.0.attention.self.query" in names


def test_reduced_takes_an_encoders_last_block_and_head(folders, tmp_path):
    oracle = Oracle.of(config(tmp_path, model=folders["head"], scope="reduced", **CLASSES))
    names = {span.name for span in oracle.replica.model.layout.tensors}
    assert "bert.encoder.layer.1.output.dense.weight" in names
    assert "bert.encoder.layer.1.intermediate.dense.bias" in names
    assert "classifier.weight" in names
    assert not any("layer.0" in name or "attention" in name for name in names)


def test_a_run_starts_from_a_head_that_another_trained(folders, tmp_path):
    whole = {"keep_memory": 0, "keep_disk": 0}  # whole passes in both runs: the same bits
    first = config(tmp_path, "base", model=folders["head"], mode="fo", scope="head", **whole,
                   learning_rate=0.5, num_rounds=4, save_model=True, **CLASSES)  # fmt: skip
    folder = run_local(first)
    second = config(tmp_path, "second", model="", init_from=str(folder), num_rounds=1, **CLASSES)
    reached = json.loads((folder / "summary.json").read_text())
    run = federate(second)
    assert run.summary["evaluation_loss_first"] == reached["evaluation_loss_last"]
    assert run.summary["parameters"] > 4 * reached["parameters"]


def test_a_classifier_in_bfloat16_stays_equal_everywhere(chosen, tmp_path):
    c = config(tmp_path, num_rounds=4, dtype="bfloat16", eps=0.01, **chosen)
    run = federate(c)
    assert run.summary["refused_replies"] == 0
    with ledger_of(c) as ledger:
        assert torch.equal(replayed(c, ledger, 4), run.flat)


def test_methods_are_compared_by_accuracy_too(folders, tmp_path):
    given = [f"{key.replace('_', '-')}={value}" for key, value in CLASSES.items()]
    given += [f"model={folders['head']}", "num-rounds=2", "num-clients=2"]
    configs = configurations("zo,fo", "", given, {"output-dir": str(tmp_path), "save-model": False})
    rows = []
    for name, chosen in configs.items():
        run_local(chosen)
        points = points_of(tmp_path / name)
        assert [point.round for point in points] == [0, 2]
        with ledger_of(chosen) as ledger:
            last = ledger.scores()["accuracy"][-1]
        assert (2, points[-1].accuracy) == last
        each = {
            "name": name,
            "to_target": None,
            "peak_memory_bytes": None,
            "settled": True,
            "learning_rate": 0.1,
        }
        curve = [asdict(point) for point in points]
        rows.append({**each, "final_loss": points[-1].loss, "points": curve})
    _, table = table_rows({"axes": AXES, "methods": rows})
    assert table[0][-3] == f"{rows[0]['final_loss']:.4f}, {rows[0]['points'][-1]['accuracy']:.1%}"


# --- evaluation at the sites


def test_sites_evaluate_on_examples_that_they_never_train_on(chosen, tmp_path):
    c = config(tmp_path, **{**chosen, "partitioner": "natural"}, num_clients=2, eval_interval=2,
               site_eval_fraction=0.25)  # fmt: skip
    run = federate(c)
    with ledger_of(c) as ledger:
        rows = select(ledger, "SELECT round, site, name, value FROM scores")
    rows = [row for row in rows if row[1] not in ("", "choices")]
    assert {row[0] for row in rows} == {0, 2}
    assert {row[1] for row in rows} == {"0", "1", "all sites"}
    assert {row[2] for row in rows} == {"loss", "accuracy", "f1", "macro_f1"}
    data = SiteData.of(c, Oracle.of(c).language_model)
    for number in range(2):
        shards, whole = data.shard(number, 2), data.queries.shard(number, 2)
        assert len(shards.held_out) + len(shards.queries) == len(whole)
        assert shards.gradients is shards.queries
        value = next(v for r, s, n, v in rows if (r, s, n) == (0, str(number), "loss"))
        held_out = torch.from_numpy(shards.held_out.batch(np.arange(len(shards.held_out))))
        assert value == evaluate(Oracle.of(c), held_out).loss
    assert run.summary["sites_accuracy_last"] in {v for r, s, n, v in rows if n == "accuracy"}


def test_the_score_of_all_sites_counts_all_their_examples(chosen, tmp_path):
    c = config(tmp_path, num_clients=3, num_rounds=1, site_eval_fraction=0.2, **chosen)
    federate(c)
    oracle = Oracle.of(c)
    data = SiteData.of(c, oracle.language_model)
    parts = [data.shard(number, 3).held_out for number in range(3)]
    rows = [torch.from_numpy(blocks.batch(np.arange(len(blocks)))) for blocks in parts]
    whole = sum((evaluate(oracle, part) for part in rows), EvalSums(0.0, 0))
    with ledger_of(c) as ledger:
        recorded = {name: series[-1][1] for name, series in ledger.scores(ALL_SITES).items()}
    assert recorded == {"loss": whole.loss, **whole.scores()}


def test_language_models_are_evaluated_at_the_sites_too_and_digests_stay(tmp_path):
    more = {"num_rounds": 2, "site_eval_fraction": 0.3}
    run = federate(config(tmp_path, eval_interval=1, **more))
    assert "sites_loss_last" in run.summary
    again = federate(config(tmp_path, "again", eval_interval=0, **more))
    assert again.digest == run.digest  # evaluating changes nothing that is trained


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (None, "wrong kind"),
        (EvalSums(1.0, 2), "bad outcome"),
        (EvalSums(float("nan"), 4, np.diag([2, 2])), "bad outcome"),
        (EvalSums(1.0, 5, np.diag([2, 2])), "bad outcome"),
        (EvalSums(-1.0, 4, np.diag([2, 2])), "bad outcome"),
        (EvalSums(1.0, 0, np.zeros((2, 2), np.int64)), "bad outcome"),
    ],
)
def test_an_impossible_outcome_is_refused(outcome, reason, folders, tmp_path):
    c = config(tmp_path, model=folders["head"], num_rounds=1, site_eval_fraction=0.2, **CLASSES)

    def change(reply):
        wrong = is_reply(reply, 1)
        return [altered(reply, lambda m: replace(m, outcome=outcome)) if wrong else reply]

    run = federate(c, Network(c, change=change))
    assert run.summary["refusals"] == {reason: 1}


@settings(max_examples=50)
@given(st.integers(0, 4), st.binary(max_size=40), st.floats(0, 1e6), st.integers(0, 3))
def test_a_reply_with_an_outcome_is_read_as_it_was_written(classes, gradient, total, numbers):
    counts = np.arange(classes**2, dtype=np.int64).reshape(classes, classes)
    values = np.arange(numbers, dtype=np.float32)
    written = Measured(1, values, 3, 0.5, 0.25, bytes(16), gradient, EvalSums(total, 7, counts))
    data = encode_reply(written)
    read = decode_reply(data)
    assert (read.outcome.total, read.outcome.examples) == (total, 7)
    assert np.array_equal(read.outcome.confusion, counts)
    assert read.gradient == gradient
    assert np.array_equal(read.differences, values)
    for end in range(0, len(data), 7):
        with pytest.raises(WireError):
            decode_reply(data[:end])


def test_sites_that_share_forwards_classify_and_evaluate_too(chosen, tmp_path):
    more = {"num_rounds": 2, "site_eval_fraction": 0.2, "eval_interval": 1}
    alone = federate(config(tmp_path, **chosen, **more))
    shared = federate(config(tmp_path, "merged", merge_clients=True, **chosen, **more))
    for name in ("evaluation_loss_last", "sites_loss_last"):
        assert shared.summary[name] == pytest.approx(alone.summary[name], rel=1e-5)
    assert shared.summary["refused_replies"] == 0


SCOPES = ["head", "bias", "reduced", "lora", "full", r"regex:\.1\..*(bias|mlp)|classifier"]


@pytest.mark.parametrize("kind", ["head", "words"])
@pytest.mark.parametrize("scope", SCOPES)
def test_cached_activations_change_no_bit(folders, kind, scope, tmp_path, monkeypatch):
    chosen = config(tmp_path, model=folders[kind], scope=scope, keep_memory=0, **CLASSES)
    differences = measure(chosen, Oracle.of(chosen))
    monkeypatch.setattr("shared.estimation.activation_cache.MOST_MISSES", 0)
    assert measure(chosen, Oracle.of(chosen)) == differences


def measure(chosen, oracle, rounds=2):
    """Loss differences of some rounds at the base model."""
    site = SiteId(1, "0")
    return [
        Queries(site, examples_of(oracle), chosen, k).measure(oracle, 0.1, None).tolist()
        for k in range(1, rounds + 1)
    ]


def test_a_head_is_measured_by_one_pass_through_the_encoder(folders, tmp_path):
    chosen = config(tmp_path, model=folders["head"], scope="head", keep_memory=0, **CLASSES)
    oracle, passes = Oracle.of(chosen), []
    encoder = oracle.language_model.module.bert.encoder
    encoder.layer[0].register_forward_hook(lambda *_: passes.append(1))
    measure(chosen, oracle, rounds=3)
    assert len(passes) == 2 + 1 + 1  # the first batch twice
