"""Pretrained models: from a folder in Hugging Face's format, a GGUF file, or the hub."""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.base.errors import ConfigError, DandelionError, DataError
from shared.models.agreement import check_agreement, check_end, check_tokenizer_files
from shared.models.gguf import check_complete, convert, find_gguf, quiet_transformers
from shared.models.initial_weights import fill_normal_
from shared.models.model import CLASSIFIER, LanguageModel, Tokenizer
from shared.models.packaged import model_names
from shared.models.tokenizers import ByteTokenizer, HubTokenizer
from shared.randomness.streams import head_weights_key

LOG = logging.getLogger("dandelion")
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
        check_tokenizer_files(name, source, tokenizer)
    if is_causal(config):
        with _explain_failure(name):
            module, info = _load(AutoModelForCausalLM, source)
        check_complete(name, info)
        _tell_unused(name, info["unexpected_keys"])
    elif labels or _is_classifier(config):
        module = _load_classifier(name, source, config, seed, labels)
    else:
        raise ConfigError(
            f"model {name!r} is {architecture(config)}, which predicts no next token: set task "
            "classification and label-words, or choose a causal language model"
        )
    wrapped = _wrap(name, tokenizer)
    check_agreement(name, module, wrapped, tokenizer)
    check_end(name, module, wrapped)
    _agree_on_padding_(module, wrapped.pad)
    return LanguageModel(name, module.eval(), wrapped)


def build_without_weights(name: str, source: str) -> Any:  # noqa: ANN401
    """Build a model's module from its configuration alone, on the device ``meta``.

    A GGUF file is converted before, which needs its weights.

    Raises:
        DataError: its configuration cannot be read here.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers import AutoModelForSequenceClassification as Classifier

    file = find_gguf(source)
    folder = str(convert(file)) if file else source
    with _explain_failure(name):
        config: Any = AutoConfig.from_pretrained(folder)
        kind: Any = AutoModelForCausalLM if is_causal(config) else AutoModel
        with torch.device("meta"):
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
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    with quiet_transformers():
        module, info = kind.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
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
    missing, own = set(info["missing_keys"]), f"{module.base_model_prefix}."
    inside = {key for key in missing if key.startswith(own)}
    new = missing - inside if any("pooler" not in key for key in inside) else missing
    check_complete(name, info, ignored=new)
    _tell_unused(name, [key for key in info["unexpected_keys"] if key.startswith(own)])
    initialise_(module, missing, seed, float(getattr(config, "initializer_range", 0.02)))
    return module


def initialise_(module: Any, missing: set[str], seed: int, std: float) -> None:  # noqa: ANN401
    """Set the missing parameters: matrices normal, gains of norms 1, all others 0."""
    for number, (key, parameter) in enumerate(module.named_parameters()):
        if key in missing:
            weights = parameter.detach()
            if parameter.dim() > 1:
                fill_normal_(weights.view(-1).numpy(), head_weights_key(seed, number), std)
            else:
                weights.fill_(float(key.endswith("norm.weight")))


def _agree_on_padding_(module: Any, pad: int) -> None:  # noqa: ANN401
    """Let a head find a text's end by the token that rows are filled with.

    Heads on causal models take the last token that is not ``pad_token_id`` of the configuration.
    """
    if module.config.pad_token_id is None or type(module).__name__.endswith(CLASSIFIER):
        module.config.pad_token_id = pad


def _tell_unused(name: str, keys: Collection[str]) -> None:
    """Log that files hold tensors which the architecture has no place for."""
    if keys:
        LOG.warning(
            "model %r: its files hold %d tensors that %s", name, len(keys),
            f"its architecture does not use, such as {min(keys)!r}",
        )  # fmt: skip


@contextmanager
def _explain_failure(name: str) -> Iterator[None]:
    """Turn the errors of transformers into one that says what to do."""
    try:
        yield
    except DandelionError:
        raise
    except Exception as error:  # whatever a library raises on a user's file
        lines = str(error).splitlines() or [type(error).__name__]
        files = "config.json, *.safetensors and the tokenizer's files"
        advice = (
            f"It must hold {files}, whole; copy it again"
            if Path(name).exists()
            else f"Where the hub can be reached, run 'hf download {name} --local-dir FOLDER'; then "
            f"copy FOLDER here and set model to its path; it must hold {files}"
        )
        raise DataError(
            f"model {name!r} cannot be loaded: {lines[0].rstrip('.')}. {advice}. Built in: "
            f"{', '.join(model_names())}"
        ) from error


def _wrap(name: str, tokenizer: Any) -> Tokenizer:  # noqa: ANN401
    """Wrap a tokenizer of transformers; the byte tokenizer is replaced by its fast twin."""
    if type(tokenizer).__name__ == "ByT5Tokenizer" and len(tokenizer) == ByteTokenizer().size:
        return ByteTokenizer()
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if end is None:
        raise DataError(f"the tokenizer of {name!r} has no end-of-text token: eos_token expected")
    return HubTokenizer(tokenizer, end)
