"""Load a model by name: a registered size, a packaged model, a local folder, or a hub's."""

from collections.abc import Sequence
from pathlib import Path

from shared.base.errors import ConfigError
from shared.models.gguf import SUFFIX
from shared.models.hub import load_pretrained
from shared.models.model import MODELS, LanguageModel
from shared.models.packaged import PACKAGED, model_names


def load_model(name: str, seed: int, labels: Sequence[str] = ()) -> LanguageModel:
    """Build a registered model, or load a packaged one, a local folder, or a name on a hub.

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
        return MODELS[name](seed)
    check_name(name)
    source = str(PACKAGED[name].folder()) if name in PACKAGED else name
    return load_pretrained(name, source, seed, labels)


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
