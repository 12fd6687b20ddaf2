"""Recipes: a task's name is enough, whatever the user says wins, and every row can be run."""

import pytest

from dandelion.settings.gather import gather
from dandelion.settings.presets import RECIPES, expanded
from shared.base.errors import UnknownNameError
from shared.config.schema import Config
from shared.data.documents import DATASETS
from shared.models.packaged import model_names
from shared.tasks.classification import label_words


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_configuration(name):
    recipe = RECIPES[name]
    pairs = {(recipe.model, "full"), *recipe.scopes, *((m, "full") for m in recipe.models)}
    for model, scope in pairs:
        config = Config.from_run_config(expanded({"task": name, "model": model, "scope": scope}))
        assert (config.model, config.scope) == (model, scope)
        assert config.dataset in DATASETS.names()
        assert model in model_names()
        assert (config.task == "classification") == (len(config.label_words) > 0)
        if config.task == "classification":
            assert len(label_words(config)) == 2


def test_the_users_settings_win():
    given = {"task": "rotten-tomatoes", "queries": 3, "label-words": "x, y"}
    found = gather(None, [f"{key}={value}" for key, value in given.items()])
    assert (found.task, found.queries, found.label_words) == ("classification", 3, "x, y")
    assert found.model == "minilm"


def test_a_pretrained_model_alone_brings_its_task():
    assert gather(None, [], model="smollm2-135m").dataset == "shakespeare"
    assert gather(None, ["model=minilm"]).dataset == "rotten-tomatoes"
    assert gather(None, ["model=smollm2-135m", "dataset=stdlib"]).block_size == Config().block_size


def test_another_model_takes_a_task_too():
    found = gather(None, [], task="rotten-tomatoes", model="smollm2-135m")
    assert (found.model, found.label_words) == ("smollm2-135m", "terrible, great")


def test_what_names_no_recipe_changes_nothing():
    settings = {"task": "language-modelling", "queries": 3}
    assert expanded(settings) == settings
    assert expanded({}) == {}


def test_an_unknown_task_names_the_known_ones():
    known = "classification, language-modelling, rotten-tomatoes, shakespeare"
    with pytest.raises(UnknownNameError, match=f"unknown task 'sst2'; known: {known}"):
        gather(None, ["task=sst2"])
