"""Recipes: a task's name is enough, whatever the user says wins, and every row can be run."""

import json

import pytest
from typer.testing import CliRunner

from dandelion.cli.app import app
from dandelion.settings.gather import gather
from dandelion.settings.presets import RECIPES, expand_preset
from shared.base.errors import ConfigError, UnknownNameError
from shared.config.schema import Config
from shared.data.documents import DATASETS
from shared.models.packaged import model_names
from shared.modes.step_rule import step_rule_of
from shared.tasks.classification import label_words
from shared.tasks.task import TASKS
from shared.training.validate import configure


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_configuration(name):
    recipe = RECIPES[name]
    pairs = {(recipe.model, "full"), *recipe.scopes, *((m, "full") for m in recipe.models)}
    for model, scope in pairs:
        config = configure(expand_preset({"preset": name, "model": model, "scope": scope}))
        assert (config.model.name, config.model.scope) == (model, scope)
        assert config.data.dataset in DATASETS.names()
        assert model in model_names()
        assert (config.data.task == "classification") == (len(config.data.label_words) > 0)
        if config.data.task == "classification":
            assert len(label_words(config.data)) == 2


def test_presets_are_listed_with_the_scopes_that_they_have_settings_for():
    done = CliRunner().invoke(app, ["settings", "--presets", "--json"])
    rows = {row["preset"]: row for row in json.loads(done.stdout)}
    assert list(rows) == list(RECIPES)
    assert rows["python-answers"]["scopes"] == "last:2:bias, lora"


@pytest.mark.parametrize(
    ("scope", "estimator", "optimizer"),
    [("last:2:bias", "forward", "sgd"), ("lora", "auto", "adam")],
)
def test_a_chat_model_answers_with_the_settings_of_its_scope(scope, estimator, optimizer):
    config = configure(expand_preset({"preset": "python-answers", "scope": scope}))
    assert (config.zo.estimator, config.optimizer.name) == (estimator, optimizer)
    assert config.text.sample_prompts == "2"


def test_the_users_settings_win():
    given = {"queries": 3, "label-words": "x, y"}
    pairs = [f"{key}={value}" for key, value in given.items()]
    result = gather(None, pairs, preset="rotten-tomatoes")
    assert (result.data.task, result.zo.queries, result.data.label_words) == (
        "classification",
        3,
        "x, y",
    )
    assert result.model.name == "minilm"


def test_a_rule_that_is_asked_for_needs_no_rate_of_the_preset():
    full = {"preset": "rotten-tomatoes", "model": "smollm2-135m", "scope": "full"}
    assert step_rule_of(configure(expand_preset(full))) == "plain"
    assert step_rule_of(configure(expand_preset({**full, "step": "auto"}))) == "auto"
    both = expand_preset({**full, "step": "auto", "learning-rate": 0.1})
    assert both["learning-rate"] == 0.1
    assert step_rule_of(configure(expand_preset({**full, "scope": "last:2"}))) == "auto"


def test_a_pretrained_model_alone_brings_its_task():
    assert gather(None, [], model="smollm2-135m").data.dataset == "shakespeare"
    assert gather(None, ["model=minilm"]).data.dataset == "rotten-tomatoes"
    assert (
        gather(None, ["model=smollm2-135m", "dataset=stdlib"]).data.block_size
        == Config().data.block_size
    )


def test_another_model_takes_a_task_too():
    result = gather(None, [], preset="rotten-tomatoes", model="smollm2-135m")
    assert (result.model.name, result.data.label_words) == ("smollm2-135m", "terrible, great")


def test_what_names_no_recipe_changes_nothing():
    settings = {"task": "language-modelling", "queries": 3}
    assert expand_preset(settings) == settings
    assert expand_preset({}) == {}


def test_an_unknown_task_names_the_known_ones():
    known = ", ".join(TASKS.names())
    with pytest.raises(UnknownNameError, match=f"unknown task 'sst2'; known: {known}$"):
        gather(None, ["task=sst2"])


def test_presets_and_tasks_are_two_things():
    with pytest.raises(ConfigError, match="is a preset: give it as --preset rotten-tomatoes"):
        gather(None, ["task=rotten-tomatoes"])
    for name in ("classification", "sst2"):
        with pytest.raises(UnknownNameError, match=f"unknown preset '{name}'; known: .*rotten-"):
            gather(None, [], preset=name)


def test_a_task_beside_a_preset_wins_as_any_setting_does():
    assert expand_preset({"preset": "shakespeare", "task": "x"})["task"] == "x"


def test_settings_are_read_in_any_spelling_and_later_sources_win(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("min-clients = 2\n[zo]\neps = 0.5\nqueries = 3\n")
    config = gather(file, ["zo.queries=5", "num_rounds=7", "min-replies=1", "queries=6"])
    assert (config.zo.eps, config.zo.queries, config.training.rounds) == (0.5, 6, 7)
    assert (config.federation.min_replies, config.federation.min_sites) == (1, 2)


def test_a_typing_error_is_answered_with_the_nearest_names():
    with pytest.raises(ConfigError, match="unknown setting 'lr'; did you mean learning-rate"):
        gather(None, ["lr=0.1"])
