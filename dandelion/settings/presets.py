"""What the name of a preset, or of a pretrained model, sets besides; whatever the user sets wins.

So that ``dandelion run --preset rotten-tomatoes --model minilm`` is enough. Where a rate was tried,
the README's figures say how far it goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.base.errors import ConfigError, UnknownNameError
from shared.base.options import Value

Settings = Mapping[str, Value]
PRESET = "preset"  # not a setting: it stands for several


@dataclass(frozen=True)
class Recipe:
    """A task on a data set, and what suits one model, or one model in one scope."""

    about: str
    model: str  # the usual one
    settings: Settings
    models: Mapping[str, Settings] = field(default_factory=dict)
    scopes: Mapping[tuple[str, str], Settings] = field(default_factory=dict)  # by model and scope
    ladders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # scopes, by model


LINEAR: Settings = {  # a readout on kept features: exact slopes of whole shards, no rate to search
    "step": "auto",
    "queries": 64,
    "zo-batch-size": 0,
    "bp-batch-size": 64,
    "bp-learning-rate": 0.1,
    "num-rounds": 125,
    "threads": 2,
}
BLOCKS: Settings = {  # the last blocks on kept activations: forward differences, no rate to search
    "estimator": "forward",
    "step": "auto",
    "queries": 16,
    "zo-batch-size": 32,
    "num-rounds": 60,
    "threads": 2,
}
NORMS: Settings = {  # some thousand numbers of the last blocks; each site has its own directions
    "estimator": "forward",
    "step": "normalised",
    "queries": 16,
    "seed-schedule": "independent",
    "threads": 2,
}
SMALL: Settings = {"num-clients": 4, "snapshot-interval": 0}
RECIPES: Mapping[str, Recipe] = {
    "rotten-tomatoes": Recipe(
        "sentences of film reviews: rotten or fresh; accuracy and F1",
        "minilm",
        {
            **SMALL,
            "task": "classification",
            "dataset": "rotten-tomatoes",
            "label-words": "terrible, great",
            "block-size": 64,
            "zo-batch-size": 16,
            "bp-batch-size": 16,
            "queries": 8,
            "eval-blocks": 512,
            "eval-interval": 20,
            "num-rounds": 100,
            "learning-rate": 1e-4,
            "bp-learning-rate": 0.05,
        },
        {
            "minilm": {"label-words": "rotten, fresh", "scope": "head", "features": "mean"},
            "smollm2-135m": {"scope": "words"},
        },
        {
            ("smollm2-135m", "words"): LINEAR,
            ("smollm2-135m", "prior"): {**LINEAR, "queries": 2, "num-rounds": 20},
            ("smollm2-135m", "last:2"): BLOCKS,
            ("minilm", "head"): LINEAR,
            ("minilm", "last:2"): BLOCKS,
            ("minilm", "bias"): {
                "learning-rate": 0.02,
                "block-size": 32,
                "zo-batch-size": 32,
                "queries": 16,
            },
        },
        {
            "smollm2-135m": ("prior", "words", "last:2"),
            "minilm": ("head", "last:2"),
        },
    ),
    "shakespeare": Recipe(
        "next tokens of Shakespeare's plays, each play at one site",
        "smollm2-135m",
        {
            **SMALL,
            "task": "language-modelling",
            "dataset": "shakespeare",
            "block-size": 128,
            "zo-batch-size": 1,
            "bp-batch-size": 1,
            "queries": 4,
            "eval-blocks": 32,
            "eval-interval": 12,
            "num-rounds": 24,
            "learning-rate": 1e-5,
        },
        scopes={("smollm2-135m", "lora"): {"learning-rate": 0.03, "eps": 0.01}},
    ),
    "python-answers": Recipe(
        "questions about Python's standard library, answered by a chat model; samples are shown",
        "smollm2-135m",
        {
            **SMALL,
            "task": "instruction",
            "dataset": "python-docs",
            "block-size": 96,
            "zo-batch-size": 4,
            "bp-batch-size": 2,
            "eval-blocks": 64,
            "eval-interval": 8,
            "num-rounds": 24,
            "learning-rate": 1e-5,
            "sample-prompts": "2",
            "sample-tokens": 24,
        },
        {"smollm2-135m": {"scope": "last:2:bias"}},
        {
            ("smollm2-135m", "last:2:bias"): NORMS,
            ("smollm2-135m", "lora"): {
                "lora-blocks": 4,
                "optimizer": "adam",
                "learning-rate": 0.003,
            },
        },
    ),
}


def expand_preset(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings by flat key, with those of the recipe that their preset or their model names.

    A model that some recipe is for brings it along if neither a task nor a data set is given.

    Raises:
        UnknownNameError: there is no such preset.
        ConfigError: a preset is given as the task.
    """
    name = _recipe_of(settings)
    settings = {key: value for key, value in settings.items() if key != PRESET}
    if not name:
        return dict(settings)
    recipe = RECIPES[name]
    model = str(settings.get("model", recipe.model))
    usual = recipe.models.get(model, {})
    scope = str(settings.get("scope", usual.get("scope", "full")))
    if scope != usual.get("scope", "full"):  # what the model's own scope needs is not meant
        usual = {key: value for key, value in usual.items() if key not in ("scope", "features")}
    own = recipe.scopes.get((model, scope), {})
    return _merge(recipe.settings, {"model": model}, usual, own, settings)


def _merge(*layers: Mapping[str, object]) -> dict[str, object]:
    """Settings of layers, the later ones win; with ``step = auto`` no earlier rate is meant."""
    merged = dict[str, object]()
    for layer in layers:
        if layer.get("step") == "auto":
            merged.pop("learning-rate", None)
        merged |= layer
    return merged


def ladder_of(settings: Mapping[str, object]) -> tuple[str, ...]:
    """The scopes of a preset's ladder for a model, lowest rung first.

    Raises:
        ConfigError: there is none for this preset and model.
    """
    name = _recipe_of(settings)
    ladders = RECIPES[name].ladders if name else {}
    model = str(settings.get("model") or (RECIPES[name].model if name else ""))
    if model not in ladders:
        known = ", ".join(
            f"{name} with {model}" for name, recipe in RECIPES.items() for model in recipe.ladders
        )
        raise ConfigError(
            f"--ladder: a preset and a model that have one expected ({known}), got "
            f"{name or 'no preset'} with {model or 'no model'}"
        )
    return ladders[model]


def _recipe_of(settings: Mapping[str, object]) -> str:
    """The preset that is given, or that the model alone stands for; empty: none."""
    preset, task = str(settings.get(PRESET) or ""), settings.get("task")
    if task in RECIPES:
        raise ConfigError(f"task {task!r} is a preset: give it as --preset {task}")
    if preset:
        if preset not in RECIPES:
            raise UnknownNameError(PRESET, preset, RECIPES)
        return preset
    if task or "dataset" in settings:
        return ""
    model = settings.get("model")
    return next((name for name, recipe in RECIPES.items() if recipe.model == model), "")
