"""Further prompts: tokens of the same texts, their features, refusals."""

import numpy as np
import pytest
import torch
from tiny_reviews import CLASSES, TEXTS, folders, reviews  # noqa: F401  (fixtures)

from shared.base.errors import ConfigError
from shared.data.documents import Documents
from shared.generation.more_prompts import MorePrompts
from shared.generation.prompt_frame import prompt_frame
from shared.models.load import load_model
from shared.tasks.verbaliser import Verbaliser
from shared.training.oracle import Oracle
from shared.training.validate import configure

FIRST, SECOND, THIRD = "{text} It was", "the {text} film {text}", "user: {text} | assistant: good"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))


def configured(folders, **changes):
    settings = {"model": folders["words"], **CLASSES, "scope": "words", "threads": 1}
    return configure({**settings, "feature_scaling": "none", "block_size": 12, **changes})


def features_of(config, count=16):
    oracle = Oracle.of(config)
    documents = Documents(TEXTS, TEXTS, [n % 2 for n in range(60)])
    rows = oracle.task.examples(documents, config.data.block_size).batch(np.arange(count))
    return oracle.task.raw_features(oracle.language_model.module, torch.from_numpy(rows))


def test_the_tokens_are_those_of_the_other_prompts(folders):
    config = configured(folders, more_prompts=f"{SECOND} || {THIRD}", features="last+last@2+last@3")
    model = load_model(folders["words"], 1)
    first, second = (prompt_frame(model.tokenizer, p, "text") for p in (FIRST, SECOND))
    frames = [first, second, prompt_frame(model.tokenizer, THIRD, "chat")]
    prompts = MorePrompts.of(config, model, first)
    rows = [
        [torch.from_numpy(Verbaliser.of(model.tokenizer, f, ()).encode(t, 64)) for f in frames]
        for t in ("film", "good film plot", "")
    ]
    lengths = torch.tensor([len(row[0]) for row in rows])
    tokens = torch.nn.utils.rnn.pad_sequence([r[0] for r in rows], True, -1)
    for number in (1, 2, 3):
        read, longer = prompts.read(number, tokens, lengths)
        for row, wanted, length in zip(read, rows, longer.tolist(), strict=True):
            assert row[:length].tolist() == wanted[number - 1].tolist()
            assert (row[length:] == -1).all()


def test_features_are_those_of_each_prompt_side_by_side(folders):
    both = features_of(configured(folders, more_prompts=SECOND, features="last+layer:1:mean@2"))
    first = features_of(configured(folders, features="last"))
    second = features_of(configured(folders, prompt=SECOND, features="layer:1:mean", block_size=23))
    assert torch.allclose(both, torch.cat([first, second], 1), atol=1e-6)
    assert not torch.allclose(first, features_of(configured(folders, prompt=SECOND)), atol=1e-2)


def test_what_is_kept_is_of_its_prompts(folders):
    settings = {"features": "last@2", "keep_disk": 64}
    one = features_of(configured(folders, more_prompts=SECOND, **settings))
    other = features_of(configured(folders, more_prompts="film {text}", **settings))
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": "last+last@2"}, "features @1 to @1 expected.*got @2"),
        ({"features": "last@0"}, "the number of a prompt expected after @"),
        ({"features": "last@x"}, "the number of a prompt expected after @"),
        (
            {"more_prompts": SECOND},
            "features of each expected, such as last@2, got features 'last'",
        ),
        ({"more_prompts": "so", "features": "last@2"}, r"a text with \{text\} in it expected"),
        ({"more_prompts": SECOND, "scope": "full"}, "more-prompts with scope 'full'"),
        (
            {"more_prompts": "{text} " * 40, "features": "last@2"},
            r"more-prompts: at most 32 tokens expected.*got \d+ with prompt 2",
        ),
    ],
)
def test_prompts_that_cannot_work_are_refused(folders, changes, message):
    with pytest.raises(ConfigError, match=message):
        Oracle.of(configured(folders, **changes))
