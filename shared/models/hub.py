"""Pretrained models: from a folder in Hugging Face's format, a GGUF file, or the hub."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from shared.base.errors import ConfigError, DataError
from shared.models.gguf import convert, find_gguf
from shared.models.initial_weights import fill_normal_
from shared.models.model import CLASSIFIER, LanguageModel, Tokenizer
from shared.models.packaged import model_names
from shared.models.tokenizers import ByteTokenizer, HubTokenizer
from shared.randomness.streams import head_weights_key

CAUSAL = ("ForCausalLM", "LMHeadModel")  # how classes of causal models end
BIDIRECTIONAL = ("bert", "electra", "roberta", "albert", "camembert", "xlm-roberta")


def load_pretrained(name: str, source: str, seed: int, labels: Sequence[str]) -> LanguageModel:
    """Load a model in float32 with its tokenizer, from safetensors or a GGUF file.

    A causal language model needs no labels. Any other architecture needs the names of its classes,
    unless it has a head: a new head's weights follow from the seed.

    Args:
        name: of the model, for messages.
        source: a folder, a GGUF file, or a name on the hub.
        seed: of a new head.
        labels: names of classes.

    Raises:
        DataError: it cannot be read here; says what to download and where to put it.
        ConfigError: the architecture predicts no next token and there are no labels.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    file = find_gguf(source)
    source = str(convert(file)) if file is not None else source
    with _explain_failure(name):
        config: Any = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    if is_causal(config):
        with _explain_failure(name):
            module, info = _load(AutoModelForCausalLM, source)
        if missing := sorted(info["missing_keys"]):
            raise DataError(f"model {name!r} lacks {len(missing)} tensors, such as {missing[0]!r}")
    elif labels or _is_classifier(config):
        module = _load_classifier(name, source, config, seed, labels)
    else:
        raise ConfigError(
            f"model {name!r} is {architecture(config)}, which predicts no next token: set task "
            "classification and label-words, or choose a causal language model"
        )
    wrapped = _wrap(name, tokenizer)
    if module.config.pad_token_id is None:  # heads on causal models look for a text's end by it
        module.config.pad_token_id = wrapped.pad
    return LanguageModel(name, module.eval(), wrapped)


def build_without_weights(name: str, source: str) -> Any:  # noqa: ANN401
    """Build a model's module from its configuration alone, best on the device ``meta``.

    Raises:
        DataError: its configuration cannot be read here.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers import AutoModelForSequenceClassification as Classifier

    file = find_gguf(source)
    with _explain_failure(name):
        config: Any = AutoConfig.from_pretrained(str(convert(file)) if file else source)
        kind: Any = AutoModelForCausalLM if is_causal(config) else AutoModel
        return (Classifier if _is_classifier(config) else kind).from_config(config)


def architecture(config: Any) -> str:  # noqa: ANN401
    """The class that a model was saved from, or its type if the file names none."""
    return str((config.architectures or [config.model_type])[0])


def is_causal(config: Any) -> bool:  # noqa: ANN401
    """Whether a model predicts each token from those before it, and scores tokens."""
    if config.architectures:
        causal = architecture(config).endswith(CAUSAL)
        return causal and (config.model_type not in BIDIRECTIONAL or config.is_decoder)
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return known and config.model_type not in BIDIRECTIONAL


def _is_classifier(config: Any) -> bool:  # noqa: ANN401
    return architecture(config).endswith(CLASSIFIER)


def _load(kind: Any, source: str, **options: object) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
    import torch
    from transformers.utils.logging import disable_progress_bar, get_verbosity, set_verbosity

    disable_progress_bar()  # type: ignore[no-untyped-call]
    before = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        module, info = kind.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    finally:
        set_verbosity(before)
    return module, info


def _load_classifier(
    name: str,
    source: str,
    config: Any,  # noqa: ANN401
    seed: int,
    labels: Sequence[str],
) -> Any:  # noqa: ANN401
    """Load a sequence classifier; weights of its head that no file holds follow from the seed."""
    from transformers import AutoModelForSequenceClassification

    options: dict[str, object] = {}
    if not _is_classifier(config):
        options = {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
        }
    with _explain_failure(name):
        module, info = _load(AutoModelForSequenceClassification, source, **options)
    missing = set(info["missing_keys"])
    inside = sorted(key for key in missing if key.startswith(f"{module.base_model_prefix}."))
    if inside and not all("pooler" in key for key in inside):
        raise DataError(f"model {name!r} lacks {len(inside)} tensors, such as {inside[0]!r}")
    _initialise_(module, missing, seed, float(getattr(config, "initializer_range", 0.02)))
    return module


def _initialise_(module: Any, missing: set[str], seed: int, std: float) -> None:  # noqa: ANN401
    """Set the missing parameters: matrices normal, gains of norms 1, all others 0."""
    for number, (key, parameter) in enumerate(module.named_parameters()):
        if key in missing:
            weights = parameter.detach()
            if parameter.dim() > 1:
                fill_normal_(weights.view(-1).numpy(), head_weights_key(seed, number), std)
            else:
                weights.fill_(float(key.endswith("norm.weight")))


@contextmanager
def _explain_failure(name: str) -> Iterator[None]:
    """Turn the errors of transformers into one that says what to do."""
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
    """Wrap a tokenizer of transformers; the byte tokenizer is replaced by its fast twin."""
    if type(tokenizer).__name__ == "ByT5Tokenizer" and len(tokenizer) == ByteTokenizer().size:
        return ByteTokenizer()
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if end is None:
        raise DataError(f"the tokenizer of {name!r} has no end-of-text token: eos_token expected")
    return HubTokenizer(tokenizer, end)
