"""Models that others trained: a local folder in Hugging Face's format, or a name on its hub."""

from typing import Any

from shared.errors import DataError
from shared.models import MODELS, LanguageModel, Tokenizer
from shared.models.tokenizers import ByteTokenizer, HubTokenizer


def load(name: str) -> LanguageModel:
    """Load a causal language model in float32 with its tokenizer, from safetensors only.

    Raises:
        DataError: it cannot be read here; says what to download and where to put it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

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


def _wrap(name: str, tokenizer: Any) -> Tokenizer:  # noqa: ANN401
    """Give a tokenizer our contract; the byte tokenizer its fast twin."""
    if type(tokenizer).__name__ == "ByT5Tokenizer" and len(tokenizer) == ByteTokenizer().size:
        return ByteTokenizer()
    if tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer of {name!r} has no end-of-text token: eos_token expected")
    return HubTokenizer(tokenizer, tokenizer.eos_token_id)
