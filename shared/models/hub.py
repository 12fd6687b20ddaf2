"""Models that others trained: a folder in Hugging Face's format, a GGUF file, a name on the hub."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.base.errors import ConfigError, DataError
from shared.models.gguf import SUFFIX, convert, gguf_of
from shared.models.initial_weights import fill_normal_
from shared.models.model import CLASSIFIER, LanguageModel, Tokenizer, model_names
from shared.models.tokenizers import ByteTokenizer, HubTokenizer
from shared.randomness.streams import head_weights_key

CAUSAL = ("ForCausalLM", "LMHeadModel")  # how classes of causal models end
BIDIRECTIONAL = ("bert", "electra", "roberta", "albert", "camembert", "xlm-roberta")


def load(name: str, place: str, seed: int, labels: Sequence[str]) -> LanguageModel:
    """Load a model in float32 with its tokenizer, from safetensors or a GGUF file at ``place``.

    A causal language model is one with or without ``labels``. Any other architecture needs the
    names of its classes: it keeps a head that it has, else it gets one whose weights follow from
    the seed.

    Raises:
        DataError: it cannot be read here; says what to download and where to put it.
        ConfigError: the name can only be misspelt, or the architecture predicts no next token
            and there are no labels.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    check_name(name)
    file = gguf_of(place)
    place = str(convert(file)) if file is not None else place
    with _explained(name):
        config: Any = AutoConfig.from_pretrained(place)
        tokenizer = AutoTokenizer.from_pretrained(place)
    if is_causal(config):
        with _explained(name):
            module, found = _load(AutoModelForCausalLM, place)
        if missing := sorted(found["missing_keys"]):
            raise DataError(f"model {name!r} lacks {len(missing)} tensors, such as {missing[0]!r}")
    elif labels or _classes(config):
        module = _with_head(name, place, config, seed, labels)
    else:
        raise ConfigError(
            f"model {name!r} is {architecture(config)}, which predicts no next token: set task "
            "classification and label-words, or choose a causal language model"
        )
    wrapped = _wrap(name, tokenizer)
    if module.config.pad_token_id is None:  # heads on causal models look for a text's end by it
        module.config.pad_token_id = wrapped.pad
    return LanguageModel(name, module.eval(), wrapped)


def shapes(name: str, place: str) -> Any:  # noqa: ANN401
    """The module of a model whose weights are not read: build it on the device ``meta``.

    Raises:
        DataError: its configuration cannot be read here.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers import AutoModelForSequenceClassification as Classifier

    file = gguf_of(place)
    with _explained(name):
        config: Any = AutoConfig.from_pretrained(str(convert(file)) if file else place)
        kind: Any = AutoModelForCausalLM if is_causal(config) else AutoModel
        return (Classifier if _classes(config) else kind).from_config(config)


def check_name(name: str) -> None:
    """Refuse a name that is misspelt, before a hub is asked for it, again and again.

    Raises:
        ConfigError: neither registered, nor a folder or a file, nor on a hub, nor cached.
    """
    from huggingface_hub import try_to_load_from_cache

    if name in model_names() or (name and Path(name).exists()) or name.count("/") == 1:
        return
    if name.endswith(SUFFIX) and name.count("/") > 1 and not name.startswith(("/", ".")):
        return
    if not name or "/" in name or not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise ConfigError(
            f"unknown model {name!r}; known: {', '.join(model_names())}; or a folder in Hugging "
            "Face format, a GGUF file, or owner/name on its hub"
        )


def architecture(config: Any) -> str:  # noqa: ANN401
    """The class that a model was saved from, or its kind where that is not said."""
    return str((config.architectures or [config.model_type])[0])


def is_causal(config: Any) -> bool:  # noqa: ANN401
    """Whether a model predicts each token from those before it, and gives numbers to tokens."""
    if config.architectures:
        causal = architecture(config).endswith(CAUSAL)
        return causal and (config.model_type not in BIDIRECTIONAL or config.is_decoder)
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return known and config.model_type not in BIDIRECTIONAL


def _classes(config: Any) -> bool:  # noqa: ANN401
    return architecture(config).endswith(CLASSIFIER)


def _load(kind: Any, place: str, **options: object) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
    import torch
    from transformers.utils.logging import disable_progress_bar, get_verbosity, set_verbosity

    disable_progress_bar()  # type: ignore[no-untyped-call]
    before = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        module, found = kind.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    finally:
        set_verbosity(before)
    return module, found


def _with_head(
    name: str,
    place: str,
    config: Any,  # noqa: ANN401
    seed: int,
    labels: Sequence[str],
) -> Any:  # noqa: ANN401
    """A sequence classifier; whatever of its head was not in the files follows from the seed."""
    from transformers import AutoModelForSequenceClassification

    options: dict[str, object] = {}
    if not _classes(config):
        options = {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
        }
    with _explained(name):
        module, found = _load(AutoModelForSequenceClassification, place, **options)
    missing = set(found["missing_keys"])
    inside = sorted(key for key in missing if key.startswith(f"{module.base_model_prefix}."))
    if inside and not all("pooler" in key for key in inside):
        raise DataError(f"model {name!r} lacks {len(inside)} tensors, such as {inside[0]!r}")
    std = float(getattr(config, "initializer_range", 0.02))
    for number, (key, parameter) in enumerate(module.named_parameters()):
        if key in missing:
            weights = parameter.detach()
            if parameter.dim() > 1:
                fill_normal_(weights.view(-1).numpy(), head_weights_key(seed, number), std)
            else:
                weights.fill_(float(key.endswith("norm.weight")))
    return module


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what transformers raises for all that is amiss into what to do about it."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise DataError(
            f"model {name!r} cannot be loaded: {str(error).splitlines()[0].rstrip('.')}. Where the "
            f"hub can be reached, run 'hf download {name} --local-dir FOLDER'; then copy FOLDER "
            "here and set model to its path; it must hold config.json, *.safetensors and the "
            f"tokenizer's files. Built in: {', '.join(model_names())}"
        ) from error


def _wrap(name: str, tokenizer: Any) -> Tokenizer:  # noqa: ANN401
    """Give a tokenizer our contract; the byte tokenizer its fast twin."""
    if type(tokenizer).__name__ == "ByT5Tokenizer" and len(tokenizer) == ByteTokenizer().size:
        return ByteTokenizer()
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if end is None:
        raise DataError(f"the tokenizer of {name!r} has no end-of-text token: eos_token expected")
    return HubTokenizer(tokenizer, end)
