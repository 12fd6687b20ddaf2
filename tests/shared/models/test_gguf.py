"""GGUF files: a tiny Llama written as llama.cpp would is the model it was, loaded once for all."""

import gguf
import numpy as np
import pytest
import small_models
import torch

from dandelion.bench.memory import shapes_of
from shared.base.errors import ConfigError, DataError
from shared.models.gguf import convert, find_gguf
from shared.models.load import load_model

HEADS, KEYS = 2, 1
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))


def turned(weight, heads):
    """Rows of a projection in llama.cpp's order: pairs that are rotated together side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def tensors(module):
    for name, value in module.state_dict().items():
        weight = value.numpy()
        if name == "model.embed_tokens.weight":
            yield "token_embd.weight", weight
        elif name == "model.norm.weight":
            yield "output_norm.weight", weight
        elif name.startswith("model.layers."):
            _, _, number, rest = name.split(".", 3)
            kind = NAMES[rest.removesuffix(".weight")]
            heads = {"attn_q": HEADS, "attn_k": KEYS}.get(kind)
            yield f"blk.{number}.{kind}.weight", turned(weight, heads) if heads else weight


def write(path, module, left_out=""):
    """The model, but for one tensor, with a byte-pair tokenizer that knows single letters."""
    config, writer = module.config, gguf.GGUFWriter(path, "llama")
    letters = [chr(ord("a") + n) for n in range(config.vocab_size - 3)]
    tokens = ["<s>", "</s>", *letters, "ab"]
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, weight in tensors(module):
        if name == left_out:
            continue
        writer.add_tensor(name, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "tiny.gguf", small_models.llama())


def test_a_gguf_file_is_the_model_that_was_written(file):
    model = load_model(str(file), 1)
    blocks = torch.arange(12).view(2, 6)
    with torch.inference_mode():
        expected = small_models.llama().eval()(blocks).logits
        torch.testing.assert_close(model.module(blocks).logits, expected, rtol=1e-5, atol=1e-5)
    assert model.tokenizer.end == 1
    assert model.name == str(file)
    assert not hasattr(model.module.config, "quantization_config")


def test_it_is_converted_once_and_anew_where_the_file_changes(file, monkeypatch):
    first = convert(file)
    assert (first / "model.safetensors").is_file()
    monkeypatch.setattr("shared.models.gguf._convert", lambda file, into: pytest.fail("again"))
    assert convert(file) == first
    other = file.with_name("other")
    other.mkdir()
    torch.manual_seed(1)
    monkeypatch.undo()
    changed = small_models.llama()
    with torch.no_grad():
        changed.model.norm.weight += 1
    assert convert(write(other / "tiny.gguf", changed)).name != first.name


def test_a_folder_with_one_file_stands_for_it(file, tmp_path):
    assert find_gguf(str(file.parent)) == file
    file.with_name("second.gguf").write_bytes(b"")
    with pytest.raises(DataError, match=r"one GGUF file expected, got .'second.gguf', 'tiny.gguf'"):
        find_gguf(str(tmp_path))
    assert find_gguf("byte-gpt") is None


def test_what_is_no_gguf_file_is_named(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no such thing")
    with pytest.raises(DataError, match=r"broken.gguf cannot be read as a model"):
        load_model(str(broken), 1)
    with pytest.raises(ConfigError, match=r"unknown model .*missing.gguf"):
        load_model(str(tmp_path / "missing.gguf"), 1)


def test_a_file_that_lacks_a_tensor_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    file = write(tmp_path / "drop.gguf", small_models.llama(), "blk.1.ffn_up.weight")
    with pytest.raises(DataError, match=r"lacks 1 tensors, such as .*layers\.1\.mlp\.up_proj"):
        load_model(str(file), 1)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_file_cut_in_its_header_is_named(file):
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(DataError, match=r"tiny.gguf cannot be read as a model: \w+"):
        load_model(str(file), 1)


def test_the_shapes_of_a_file_need_it_converted_first(file):
    layout, module = shapes_of(str(file))
    assert layout.parameters == sum(p.numel() for p in small_models.llama().parameters())
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
