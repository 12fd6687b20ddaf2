"""A ladder trains scope after scope, each from the end of the one before, while it pays."""

import json
from itertools import pairwise

import pytest
from federation import config as federation_config
from tiny_reviews import CLASSES, folders, reviews  # noqa: F401  (fixtures)

from dandelion.comparisons.curves import CurvePoint
from dandelion.comparisons.ladder import best, climb, describe, pays
from dandelion.settings.presets import expand_preset, ladder_of
from shared.base.errors import ConfigError

LINEAR = {"zo_batch_size": 0, "optimizer": "adam", "queries": 16, "learning_rate": 0.1}


def point(loss, accuracy=None):
    return CurvePoint(1, loss, 1.0, 1.0, 1.0, 1.0, accuracy)


@pytest.fixture
def rungs(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))
    common = {"model": folders["words"], **CLASSES, "num_rounds": 12, "num_clients": 2}
    scopes = {
        "prior": {**LINEAR, "scope": "prior"},
        "words": {**LINEAR, "scope": "words"},
        "bias": {"scope": "bias", "learning_rate": 1e-12, "queries": 2, "zo_batch_size": 4},
        "full": {"scope": "full"},
    }
    configs = {
        name: federation_config(tmp_path, **{**common, **settings})
        for name, settings in scopes.items()
    }
    said = []
    return climb(configs, tmp_path / "ladder", said.append), said, tmp_path / "ladder"


def test_a_ladder_ends_at_the_first_rung_that_does_not_pay(rungs):
    climbed, said, folder = rungs
    assert [rung.scope for rung in climbed] == ["prior", "words", "bias"]
    assert [rung.pays for rung in climbed] == [True, True, False]
    assert best(climbed) is climbed[1]
    assert said == [describe(rung) for rung in climbed]
    assert "no longer pays" in said[-1]
    report = json.loads((folder / "ladder.json").read_text())
    assert report["best"] == climbed[1].folder
    assert (folder / "ladder.png").stat().st_size > 1000


def test_each_rung_begins_where_the_one_before_ended(rungs):
    climbed, _, _ = rungs
    for below, above in pairwise(climbed):
        assert above.start.loss == pytest.approx(below.end.loss, abs=1e-4)
        assert above.start.payload == below.end.payload
        assert above.end.payload > below.end.payload


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (point(1.0), point(0.98), True),
        (point(1.0), point(0.995), False),
        (point(1.0, 0.5), point(1.0, 0.51), True),
        (point(1.0, 0.5), point(1.0, 0.501), False),
    ],
)
def test_a_rung_pays_by_its_loss_or_by_its_accuracy(start, end, expected):
    assert pays(start, end) is expected


def test_a_preset_names_the_ladder_of_a_model():
    assert ladder_of({"preset": "rotten-tomatoes", "model": "smollm2-135m"})[:2] == (
        "prior",
        "words",
    )
    with pytest.raises(ConfigError, match="rotten-tomatoes with minilm"):
        ladder_of({"preset": "shakespeare"})


def test_a_preset_trains_few_numbers_on_kept_features():
    words = expand_preset({"preset": "rotten-tomatoes", "model": "smollm2-135m"})
    assert (words["scope"], words["zo-batch-size"], words["step"]) == ("words", 0, "auto")
    head = expand_preset({"preset": "rotten-tomatoes"})
    assert (head["model"], head["scope"], head["features"]) == ("minilm", "head", "mean")
    bias = expand_preset({"preset": "rotten-tomatoes", "scope": "bias"})
    assert "features" not in bias
