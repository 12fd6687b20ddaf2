"""Models that others trained: a local folder in Hugging Face's format, or a name on its hub."""

from pathlib import Path
from typing import Any

from shared.errors import ConfigError, DataError
from shared.models import MODELS, LanguageModel, Tokenizer
from shared.models.tokenizers import ByteTokenizer, HubTokenizer


def load(name: str) -> LanguageModel:
    """Load a causal language model in float32 with its tokenizer, from safetensors only.

    Raises:
        ConfigError: it can only be misspelt.
        DataError: it cannot be read here; says what to download and where to put it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_name(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        module: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError) as error:  # what transformers raises for all that is amiss
        raise DataError(
            f"model {name!r} cannot be loaded: {str(error).splitlines()[0].rstrip('.')}. Where the "
            f"hub can be reached, run 'hf download {name} --local-dir FOLDER'; then copy FOLDER "
            "here and set model to its path; it must hold config.json, *.safetensors and the "
            f"tokenizer's files. Built in: {', '.join(MODELS.names())}"
        ) from error
    return LanguageModel(name, module.eval(), _wrap(name, tokenizer))


def check_name(name: str) -> None:
    """Refuse a name that is misspelt, before a hub is asked for it, again and again.

    Raises:
        ConfigError: neither registered, nor a folder, nor on a hub (owner/name), nor cached.
    """
    from huggingface_hub import try_to_load_from_cache

    if name in MODELS.names() or (name and Path(name).is_dir()) or name.count("/") == 1:
        return
    if not name or "/" in name or not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise ConfigError(
            f"unknown model {name!r}; known: {', '.join(MODELS.names())}; or a folder in Hugging "
            "Face format, or owner/name on its hub"
        )


def _wrap(name: str, tokenizer: Any) -> Tokenizer:  # noqa: ANN401
    """Give a tokenizer our contract; the byte tokenizer its fast twin."""
    if type(tokenizer).__name__ == "ByT5Tokenizer" and len(tokenizer) == ByteTokenizer().size:
        return ByteTokenizer()
    if tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer of {name!r} has no end-of-text token: eos_token expected")
    return HubTokenizer(tokenizer, tokenizer.eos_token_id)
