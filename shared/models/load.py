"""Load a model by name: a registered size, a packaged model, a local folder, or a hub's."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from shared.base.errors import ConfigError
from shared.models.gguf import SUFFIX
from shared.models.hub import initialise_, load_pretrained
from shared.models.model import MODELS, LanguageModel
from shared.models.packaged import PACKAGED, model_names


def load_light(name: str, seed: int) -> LanguageModel:
    """Build a registered model as a module of ours, or load another with transformers.

    Who asks it for the logits of next tokens alone need not import transformers.

    Raises:
        ConfigError, DataError: as by ``load_model``.
    """
    return MODELS[name](seed) if name in MODELS.names() else load_model(name, seed)


def load_model(name: str, seed: int, labels: Sequence[str] = ()) -> LanguageModel:
    """Build a registered model, or load a packaged one, a local folder, or a name on a hub.

    Its module is transformers' own.

    Args:
        name: of the model.
        seed: of all weights that are not read from a file.
        labels: names of classes. With them an encoder gets a head, or keeps the one that it has;
            a causal language model stays what it is.

    Raises:
        ConfigError: the name can only be misspelt, or the model cannot do what is needed.
        DataError: it cannot be had here; says what to download and where to put it.
    """
    if name in MODELS.names():
        return MODELS[name](seed).in_transformers()
    check_name(name)
    source = str(PACKAGED[name].folder()) if name in PACKAGED else name
    return load_pretrained(name, source, seed, labels)


def with_number_head(model: LanguageModel, seed: int) -> LanguageModel:
    """A causal language model with a head of one output on the last token, in place of its scores.

    Raises:
        ConfigError: transformers has no such head for its architecture.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as KINDS

    body: Any = model.module
    config = deepcopy(body.config)
    config.num_labels, config.pad_token_id = 1, model.tokenizer.pad
    kind: Any = KINDS.get(type(config), None)
    if kind is None:
        raise ConfigError(
            f"task regression: a head for {type(body).__name__} expected in transformers, which "
            "has none; choose an encoder, or a model such as Llama, Qwen, Gemma, OPT or Phi"
        )
    module = kind(config)
    getattr(module, module.base_model_prefix).load_state_dict(body.base_model.state_dict())
    own = f"{module.base_model_prefix}."
    new = {name for name, _ in module.named_parameters() if not name.startswith(own)}
    initialise_(module, new, seed, float(getattr(config, "initializer_range", 0.02)))
    return LanguageModel(model.name, module.eval(), model.tokenizer)


def check_name(name: str) -> None:
    """Refuse a misspelt name before a hub is queried for it.

    Raises:
        ConfigError: neither registered, nor a folder or a file, nor on a hub, nor cached.
    """
    if name in model_names() or (name and Path(name).exists()) or _may_be_on_hub(name):
        return
    if not name or "/" in name or not _is_cached(name):
        raise ConfigError(
            f"unknown model {name!r}; known: {', '.join(model_names())}; or a folder in Hugging "
            "Face format, a GGUF file, or owner/name on its hub"
        )


def _may_be_on_hub(name: str) -> bool:
    """Whether a name has the form ``owner/name`` or ``owner/name/file.gguf``."""
    if name.count("/") == 1:
        return True
    return name.endswith(SUFFIX) and name.count("/") > 1 and not name.startswith(("/", "."))


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)
