"""A model as a GGUF file, for llama.cpp and whatever reads its format.

The layout of keys and tensors is that of llama.cpp's ``convert_hf_to_gguf.py``: Llama's rotated
rows are put side by side, and GPT-2's matrices are transposed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dandelion.export.formats.gguf_vocabulary import Vocabulary, vocabulary_of
from shared.base.errors import ConfigError
from shared.base.files import draft_file
from shared.models.hub import CAUSAL
from shared.models.model import LanguageModel

ARCHITECTURES = ("gpt2", "llama", "qwen2")
SPLITS = {"qwen2": "qwen2"}  # readers look at the architecture, and not at the file
DTYPES = ("f32", "f16", "bf16")
TRANSPOSED = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")


def write_gguf(model: LanguageModel, path: Path, dtype: str, name: str, license_: str) -> Path:
    """Write a model with its tokenizer as one GGUF file; adapters are merged.

    Args:
        model: a causal language model; it does not change.
        path: the file; it is whole or absent.
        dtype: of matrices: f32, f16 or bf16; vectors stay in float32.
        name: of the model, for readers.
        license_: for readers; empty: none is named.

    Raises:
        ConfigError: another architecture, tokenizer or dtype; names what is known.
    """
    import gguf

    if dtype not in DTYPES:
        raise ConfigError(f"--dtype: one of {', '.join(DTYPES)} expected, got {dtype!r}")
    model = model.in_transformers()
    config = model.module.config
    check_architecture(model.module)
    vocabulary = vocabulary_of(model.tokenizer, config.vocab_size)
    if config.model_type in SPLITS and vocabulary.split != SPLITS[config.model_type]:
        raise ConfigError(
            f"--gguf: readers split text for {config.model_type} as {SPLITS[config.model_type]!r}, "
            f"and this tokenizer does so as {vocabulary.split!r}"
        )
    with draft_file(path) as draft:
        writer: Any = gguf.GGUFWriter(draft, config.model_type)
        writer.add_name(name)
        if license_:
            writer.add_license(license_)
        kinds = gguf.LlamaFileType
        writer.add_file_type({"f32": kinds.ALL_F32, "f16": kinds.MOSTLY_F16,
                              "bf16": kinds.MOSTLY_BF16}[dtype])  # fmt: skip
        _add_shape(writer, config)
        _add_vocabulary(writer, vocabulary)
        for tensor, value in tensors_of(model):
            _add_tensor(writer, tensor, value, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def check_architecture(module: Any) -> None:  # noqa: ANN401
    """Refuse what this module cannot write as it is.

    Raises:
        ConfigError: names the architecture, or the part of it.
    """
    config, name = module.config, type(module).__name__
    kind = config.model_type
    if kind not in ARCHITECTURES or not name.endswith(CAUSAL):
        raise ConfigError(
            f"--gguf: architecture {name} ({kind}) cannot be written; causal models of these can: "
            f"{', '.join(ARCHITECTURES)}"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"--gguf: rope scaling {rope['rope_type']!r} cannot be written")
    if kind == "llama" and (config.attention_bias or config.mlp_bias):
        raise ConfigError("--gguf: biases of llama cannot be written, for no reader expects them")
    if getattr(config, "use_sliding_window", False):
        raise ConfigError("--gguf: attention in sliding windows cannot be written")


def tensors_of(model: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    """Each tensor in GGUF's layout with its GGUF name; adapters are merged.

    Raises:
        ConfigError: GGUF has no name for one of them.
    """
    import gguf

    config = model.module.config
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    state = model.state(model.module) if model.state else model.module.state_dict()
    for key, value in state.items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ConfigError(f"--gguf: tensor {key!r} of {config.model_type} has no name in GGUF")
        yield name, _in_layout(name, value.detach().to("cpu", torch.float32), config)


def _in_layout(name: str, value: Tensor, config: Any) -> Tensor:  # noqa: ANN401
    if config.model_type == "gpt2" and name.endswith(TRANSPOSED):
        return value.T
    if config.model_type == "llama" and ".attn_q." in name:
        return interleave(value, config.num_attention_heads)
    if config.model_type == "llama" and ".attn_k." in name:
        return interleave(value, config.num_key_value_heads)
    return value


def interleave(rows: Tensor, heads: int) -> Tensor:
    """Rows (n, …) of a projection with those that are rotated together side by side, per head."""
    parts = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return parts.swapaxes(1, 2).reshape(rows.shape)


def _add_shape(writer: Any, config: Any) -> None:  # noqa: ANN401
    width, heads = config.hidden_size, config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * width)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = getattr(config, "rope_parameters", None) or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10_000.0)))
    writer.add_rope_dimension_count(getattr(config, "head_dim", None) or width // heads)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:  # noqa: ANN401
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    else:  # a reader makes merges of scores, and finds that there are none
        writer.add_token_scores([0.0] * len(vocabulary.tokens))
    if vocabulary.begin is not None:
        writer.add_bos_token_id(vocabulary.begin)
    writer.add_eos_token_id(vocabulary.end)
    writer.add_pad_token_id(vocabulary.pad)
    writer.add_add_bos_token(False)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _add_tensor(writer: Any, name: str, value: Tensor, dtype: str) -> None:  # noqa: ANN401
    import gguf

    numbers: NDArray[Any] = np.ascontiguousarray(value.numpy())
    if numbers.ndim < 2 or dtype == "f32":
        writer.add_tensor(name, numbers)
    elif dtype == "f16":
        writer.add_tensor(name, numbers.astype(np.float16))
    else:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quantize(numbers, kind), raw_dtype=kind)
