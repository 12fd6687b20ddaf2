"""Prompts with roles: by the model's own chat template, for labels and for choices."""

import json

import numpy as np
import pytest
import torch
from federation import config, federate
from small_chats import TEMPLATE, chat_model, chat_tokenizer

from shared.base.errors import ConfigError
from shared.generation.prompt_frame import parse_turns, prompt_frame
from shared.models.load import load_model
from shared.models.tokenizers import HubTokenizer
from shared.training.corpus import Corpus
from shared.training.oracle import Oracle

PROMPT = "user: the film {text} | assistant: It was"
SYSTEM = TEMPLATE.replace("['user', 'assistant']", "['system', 'user', 'assistant']")


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """A folder with a chat model, one with texts of two classes, and one with questions."""
    home = tmp_path_factory.mktemp("chats")
    chat_model(home / "model")
    texts = [
        {"text": ("good plot", "bad plot")[n % 2], "label": ("great", "terrible")[n % 2]}
        for n in range(24)
    ]
    questions = [
        {"question": "was it good", "choices": ["great film", "bad"], "answer": n % 2}
        for n in range(24)
    ]
    for name, rows in (("texts", texts), ("questions", questions)):
        (home / name).mkdir()
        (home / name / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return home


def oracle_of(chats, tmp_path, task, **more):
    settings = {"model": str(chats / "model"), "block_size": 24, "prompt_form": "chat",
                "partitioner": "iid", "max_samples": 0, "num_clients": 2, **more}  # fmt: skip
    c = config(tmp_path, task=task, **settings)
    oracle = Oracle.of(c)
    corpus = Corpus.of(c, oracle.language_model)
    return c, oracle, torch.from_numpy(corpus.training.batch(np.arange(4)))


def test_the_template_writes_the_prompt_and_the_label_ends_the_assistants_turn():
    tokenizer = HubTokenizer(chat_tokenizer(), 3)
    frame = prompt_frame(tokenizer, PROMPT, "chat")
    turns = [{"role": "user", "content": "the film good plot"},
             {"role": "assistant", "content": "It was great"}]  # fmt: skip
    whole = tokenizer.inner.apply_chat_template(turns, tokenize=False)
    before, after = frame.around
    ours = [*before, *tokenizer.encode("good plot"), *after, *frame.label("great")]
    assert tokenizer.encode_marked(whole).tolist()[: len(ours)] == ours
    assert len(frame.label("great")) == 1
    assert frame.end == tokenizer.end


def test_a_prompt_without_roles_is_the_users_turn():
    tokenizer = HubTokenizer(chat_tokenizer(), 3)
    plain, named = (
        prompt_frame(tokenizer, prompt, "chat")
        for prompt in ("the {text} it", "user: the {text} it")
    )
    assert [*map(list, plain.around)] == [*map(list, named.around)]
    assert plain.label("good film") == tuple(tokenizer.encode("good film").tolist())


def test_the_template_writes_a_text_that_is_named_twice():
    tokenizer = HubTokenizer(chat_tokenizer(), 3)
    frame = prompt_frame(tokenizer, "user: {text} so {text} | assistant: It was", "chat")
    before, between, after = frame.around
    text = tokenizer.encode("good plot")
    turns = [{"role": "user", "content": "good plot so good plot"},
             {"role": "assistant", "content": "It was great"}]  # fmt: skip
    whole = tokenizer.inner.apply_chat_template(turns, tokenize=False)
    ours = [*before, *text, *between, *text, *after, *frame.label("great")]
    assert tokenizer.encode_marked(whole).tolist()[: len(ours)] == ours


def test_a_system_turn_goes_where_the_template_takes_it():
    prompt = "system: good or bad | user: {text}"
    tokenizer = HubTokenizer(chat_tokenizer(SYSTEM), 3)
    start = prompt_frame(tokenizer, prompt, "chat").around[0].tolist()
    assert start[:5] == tokenizer.encode_marked("[CLS] system good or bad").tolist()
    with pytest.raises(ConfigError, match="takes no conversation of roles system, user: only user"):
        prompt_frame(HubTokenizer(chat_tokenizer(), 3), prompt, "chat")


def test_a_tokenizer_without_a_template_gets_the_plain_form():
    tokenizer = load_model("byte-gpt", 0).tokenizer
    frame = prompt_frame(tokenizer, "system: Judge. | user: {text} | assistant: It was", "chat")
    before, after = frame.around
    text = [before, tokenizer.encode("a film"), after, np.array(frame.label("good"))]
    assert tokenizer.decode(np.concatenate(text)) == (
        "System: Judge.\nUser: a film\nAssistant: It was good"
    )


@pytest.mark.parametrize(
    "prompt",
    [
        "Judge. | user: {text}",
        "user: {text} | assistant:  | user: so",
        "user: so | assistant: {text}",
    ],
)
def test_turns_that_are_none_are_refused_with_an_example(prompt):
    with pytest.raises(ConfigError, match="turns such as 'system: You judge films"):
        parse_turns(prompt)


@pytest.mark.parametrize("scoring", ["first", "sum"])
def test_a_chat_model_is_measured_by_the_label_after_its_template(scoring, chats, tmp_path):
    """By one plain pass for each label, over what the template writes of the whole conversation."""
    _, oracle, rows = oracle_of(
        chats, tmp_path, "classification", dataset=str(chats / "texts"), prompt=PROMPT,
        label_words="great, terrible", label_scoring=scoring,
    )  # fmt: skip
    model = oracle.language_model
    inner = model.tokenizer.inner
    wanted = []
    for row in rows:
        text = inner.decode(row[1:][row[1:] >= 0])
        scores = []
        for label in ("great", "terrible"):
            ids = torch.from_numpy(model.tokenizer.encode_marked(f"{text} {label}"))[None]
            scores.append(model.module(ids).logits[0, -2].log_softmax(-1)[ids[0, -1]])
        wanted.append(-torch.stack(scores).log_softmax(0)[row[0]].item())
    assert oracle.losses(rows).tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("mode", ["zo", "fo"])
def test_questions_of_a_chat_are_trained_on(mode, chats, tmp_path):
    c, _, rows = oracle_of(
        chats, tmp_path, "multiple-choice", dataset=str(chats / "questions"), mode=mode,
        choice_prompt="user: the {text} | assistant: It was", num_rounds=1,
    )  # fmt: skip
    tokenizer = load_model(str(chats / "model"), 0).tokenizer
    question = rows[0, 1 : 1 + rows[0, 1:].tolist().index(-2)].tolist()
    assert tokenizer.decode(np.array(question)) == (
        "[CLS] [UNK] the was it good [SEP] [CLS] [UNK] It was"  # roles are no words of it
    )
    run = federate(c)
    assert run.summary["refused_replies"] == 0
    assert run.summary["evaluation_loss_last"] != run.summary["evaluation_loss_first"]


@pytest.mark.parametrize("task", ["language-modelling", "instruction", "regression"])
def test_the_form_of_a_prompt_is_refused_for_a_task_without_one(task, tmp_path):
    with pytest.raises(ConfigError, match="prompt-form = chat needs task classification or"):
        config(tmp_path, task=task, prompt_form="chat")
