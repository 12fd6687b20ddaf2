"""A GGUF file that we write is the model that it was: numbers, tokens and names."""

import gguf
import pytest
import small_models
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dandelion.export.formats.gguf_file import interleave, write_gguf
from dandelion.export.formats.gguf_vocabulary import vocabulary_of
from shared.base.errors import ConfigError
from shared.models.load import load_model
from shared.models.model import LanguageModel
from shared.models.tokenizers import HubTokenizer

TEXT = "Grüße: the rain in 2026, <s> <think> again\n\n  the rain!"
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 300,
         "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
         "max_position_embeddings": 48}  # fmt: skip


QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {"qwen2": pre_tokenizers.Split(Regex(QWEN2), "isolated")}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))


def byte_level(split=None):
    """A trained byte-level BPE tokenizer of at most 290 tokens."""
    inner = Tokenizer(models.BPE())
    isolated = isinstance(split, pre_tokenizers.Split)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not isolated)
    inner.pre_tokenizer = level if split is None else pre_tokenizers.Sequence([split, level])
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["<s>", "</s>"],
                                  initial_alphabet=alphabet, show_progress=False)  # fmt: skip
    inner.train_from_iterator([TEXT, "the rain, the train, the again"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return fast


def model_of(kind, **changes):
    torch.manual_seed(0)
    configs = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
    config, build = configs[kind]
    module = build(config(**SHAPE | changes))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return LanguageModel(kind, module.eval(), HubTokenizer(byte_level(SPLITS.get(kind)), 1))


def logits(model):
    tokens = torch.arange(40).view(2, 20) + 3
    with torch.inference_mode():
        return model.module(tokens).logits


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True, "rope_theta": 500.0}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {}),
    ],
)
def test_a_model_comes_back_with_the_same_numbers_and_tokens(kind, changes, tmp_path):
    model = model_of(kind, **changes)
    if changes.get("attention_bias"):
        with pytest.raises(ConfigError, match="biases of llama"):
            write_gguf(model, tmp_path / "m.gguf", "f32", "tiny", "")
        return
    again = load_model(str(write_gguf(model, tmp_path / "m.gguf", "f32", "tiny", "mit")), 1)
    before, after = model.module.state_dict(), again.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-5)
    assert again.tokenizer.encode(TEXT).tolist() == model.tokenizer.encode(TEXT).tolist()
    assert again.tokenizer.decode(again.tokenizer.encode(TEXT)) == TEXT
    assert again.tokenizer.end == 1
    assert again.tokenizer.inner.chat_template == model.tokenizer.inner.chat_template


def test_the_byte_gpt_comes_back(tmp_path):
    model = load_model("byte-gpt", 3)
    again = load_model(str(write_gguf(model, tmp_path / "b.gguf", "f32", "bytes", "")), 1)
    before, after = model.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-5)
    assert again.positions == model.positions == 128
    assert again.tokenizer.encode(TEXT).tolist() == model.tokenizer.encode(TEXT).tolist()


@pytest.mark.parametrize(("dtype", "error"), [("f16", 2.0**-11), ("bf16", 2.0**-8)])
def test_half_precision_rounds_matrices_and_leaves_vectors(dtype, error, tmp_path):
    model = model_of("llama")
    path = write_gguf(model, tmp_path / "m.gguf", dtype, "tiny", "")
    again = load_model(str(path), 1).module.state_dict()
    worst = 0.0
    for name, value in model.module.state_dict().items():
        gap = ((again[name] - value).abs() / value.abs().clamp(min=1e-3)).max().item()
        assert gap <= (error if value.dim() > 1 else 0.0)
        worst = max(worst, gap)
    assert worst > error / 8
    whole = write_gguf(model, tmp_path / "w.gguf", "f32", "tiny", "")
    assert path.stat().st_size < 0.75 * whole.stat().st_size


def test_the_file_names_what_a_reader_needs(tmp_path):
    path = write_gguf(model_of("llama"), tmp_path / "m.gguf", "f16", "notes round 3", "mit")
    fields = gguf.GGUFReader(path).fields
    values = {key: field.contents() for key, field in fields.items()}
    assert values["general.architecture"] == "llama"
    assert values["general.name"] == "notes round 3"
    assert values["general.license"] == "mit"
    assert values["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert values["llama.attention.head_count_kv"] == 2
    assert values["tokenizer.ggml.pre"] == "gpt-2"
    assert values["tokenizer.ggml.eos_token_id"] == 1
    assert len(values["tokenizer.ggml.tokens"]) == 300
    assert values["tokenizer.ggml.tokens"][-1] == "[PAD299]"  # rows that no token has


def test_rows_of_a_head_are_interleaved_as_llama_cpp_does():
    rows = torch.arange(8.0)[:, None]  # two heads of four: halves are rotated together
    assert interleave(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_what_cannot_be_written_is_refused_by_name(tmp_path):
    out = tmp_path / "m.gguf"
    bert = LanguageModel("bert", small_models.bert(), HubTokenizer(byte_level(), 1))
    with pytest.raises(ConfigError, match=r"BertModel \(bert\) cannot be written; .* gpt2, llama"):
        write_gguf(bert, out, "f32", "x", "")
    words = LanguageModel("w", small_models.llama(), HubTokenizer(small_models.tokenizer(False), 3))
    with pytest.raises(ConfigError, match="byte-level BPE expected, got WordLevel"):
        write_gguf(words, out, "f32", "x", "")
    other = LanguageModel("q", model_of("qwen2").module, HubTokenizer(byte_level(), 1))
    with pytest.raises(ConfigError, match=r"for qwen2 as 'qwen2', and this .* as 'gpt-2'"):
        write_gguf(other, out, "f32", "x", "")
    scaled = model_of("llama", rope_scaling={"rope_type": "linear", "factor": 2.0})
    with pytest.raises(ConfigError, match="rope scaling 'linear'"):
        write_gguf(scaled, out, "f32", "x", "")
    with pytest.raises(ConfigError, match="f32, f16, bf16 expected, got 'q4'"):
        write_gguf(model_of("llama"), out, "q4", "x", "")
    assert not list(tmp_path.glob("*m.gguf*"))


def test_how_text_is_split_has_llama_cpps_name():
    digits = byte_level(pre_tokenizers.Digits(individual_digits=True))
    assert vocabulary_of(HubTokenizer(digits, 1), 300).split == "smollm"
    with pytest.raises(ConfigError, match="split by Whitespace, ByteLevel"):
        vocabulary_of(HubTokenizer(byte_level(pre_tokenizers.Whitespace()), 1), 300)
    with pytest.raises(ConfigError, match="286 tokens do not fit an embedding of 200 rows"):
        vocabulary_of(HubTokenizer(byte_level(), 1), 200)
