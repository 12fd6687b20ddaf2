"""Models: their sizes, initial weights that are equal everywhere, and folders that others load."""

import os
from hashlib import sha256

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.errors import ConfigError, DataError, UnknownNameError
from shared.base.flat import flatten
from shared.models.gpt2 import SHAPES, Shape, hollow
from shared.models.initial_weights import TASK_WEIGHTS, fill_normal_
from shared.models.load import load_model
from shared.models.model import MODELS, LanguageModel
from shared.models.tokenizers import ByteTokenizer, HubTokenizer
from shared.randomness.philox import words
from shared.randomness.streams import model_weights_key

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of transformers


@pytest.fixture(scope="module")
def model():
    return load_model("byte-gpt", 0)


@pytest.fixture(scope="module")
def blocks():
    return torch.from_numpy(np.stack([np.arange(3 + k, 67 + k) for k in range(4)]))


# --- sizes and initial weights


def test_every_size_is_registered():
    assert set(MODELS.names()) == set(SHAPES)


@pytest.mark.parametrize("name", MODELS.names())
def test_a_size_knows_its_number_of_parameters(name):
    with torch.device("meta"):
        module = hollow(SHAPES[name])
    assert sum(p.numel() for p in module.parameters()) == SHAPES[name].parameters


def test_gpt2_small_has_the_published_number_of_parameters():
    assert SHAPES["200M"].parameters == 124_439_808


def test_initial_weights_are_the_same_bits_everywhere(model):
    digest = sha256()
    for name, parameter in model.module.named_parameters():
        digest.update(name.encode() + parameter.detach().numpy().astype("<f4").tobytes())
    assert digest.hexdigest()[:16] == "f716e481a9175626"


def test_initial_weights_follow_from_the_seed_alone(model):
    torch.manual_seed(1)
    same, other = load_model("byte-gpt", 0), load_model("byte-gpt", 1)
    for name, parameter in model.module.named_parameters():
        assert torch.equal(parameter, same.module.get_parameter(name))
        drawn = name.endswith("weight") and ".ln_" not in name
        assert torch.equal(parameter, other.module.get_parameter(name)) == (not drawn)


def test_initial_weights_have_gpt2s_deviations(model):
    for name, parameter in model.module.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif ".ln_" in name:
            assert (parameter == 1).all()
        else:
            std = 0.01 if "c_proj" in name else 0.02  # two layers: 0.02 / sqrt(4)
            assert parameter.std().item() == pytest.approx(std, rel=0.05)
            assert abs(parameter.mean().item()) < 5 * std / parameter.numel() ** 0.5


def test_a_weight_is_the_sum_of_four_uniform_halves_of_words():
    weights = np.empty(7, np.float32)
    fill_normal_(weights, model_weights_key(5, 2), 0.5)
    drawn = words(model_weights_key(5, 2), range(4)).reshape(-1, 2).tolist()[:7]
    scale = np.float32(0.5 / (4 * (2**32 - 1) / 12) ** 0.5)
    sums = [sum(word >> 16 for word in pair) + sum(w & 0xFFFF for w in pair) for pair in drawn]
    assert weights.tolist() == [float(np.float32(s - 131_070) * scale) for s in sums]


def test_weights_do_not_depend_on_how_many_are_drawn():
    short, long = np.empty(TASK_WEIGHTS + 3, np.float32), np.empty(3 * TASK_WEIGHTS + 1, np.float32)
    fill_normal_(short, model_weights_key(0, 0), 1.0)
    fill_normal_(long, model_weights_key(0, 0), 1.0)
    assert np.array_equal(short, long[: len(short)])
    assert abs(long.mean()) < 5 / len(long) ** 0.5
    assert long.std() == pytest.approx(1, abs=0.02)
    assert abs(long).max() < 3.47
    assert (long**4).mean() == pytest.approx(2.7, abs=0.1)  # 3 - 6 / (5 · 4)


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_model("byte-gpt", 3)
    assert torch.equal(before, torch.get_rng_state())


def test_the_output_head_is_the_embedding(model):
    assert model.module.lm_head.weight is model.module.transformer.wte.weight


# --- folders


def test_a_saved_folder_is_a_complete_hugging_face_model(model, blocks, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model.save(tmp_path)
    module = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with torch.inference_mode():
        assert torch.equal(module(blocks).logits, model.module(blocks).logits)
    assert module.config.eos_token_id == tokenizer.eos_token_id == ByteTokenizer().end
    assert tokenizer("hé", add_special_tokens=False).input_ids == [107, 198, 172]
    assert tokenizer.decode([107, 198, 172]) == "hé"


def test_a_flattened_model_is_saved_and_loaded_whole(blocks, tmp_path):
    model = load_model("byte-gpt", 2)
    flat = flatten(model.module)
    flat.flat[:100] += 1
    model.save(tmp_path)
    loaded = load_model(str(tmp_path), 0)
    assert isinstance(loaded.tokenizer, ByteTokenizer)
    assert loaded.positions == 128
    assert not loaded.module.training
    with torch.inference_mode():
        assert torch.equal(loaded.module(blocks).logits, model.module(blocks).logits)
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * SHAPES[
        "byte-gpt"
    ].parameters + 10_000


def test_a_model_that_cannot_be_had_offline_is_an_error_that_helps():
    reason = r"model 'nobody/nothing' cannot.*hf download.*Built in: .*byte-gpt"
    with pytest.raises(DataError, match=reason):
        load_model("nobody/nothing", 0)


@pytest.mark.parametrize("name", ["/no/such/folder", "byte-gtp"])
def test_a_name_that_can_only_be_misspelt_is_not_looked_for_on_a_hub(name, monkeypatch):
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_: 1 / 0)
    with pytest.raises(ConfigError, match=rf"unknown model '{name}'; known: .*byte-gpt"):
        load_model(name, 0)


def test_an_unknown_size_names_the_known_ones():
    with pytest.raises(UnknownNameError, match=f"known: {', '.join(sorted(SHAPES))}"):
        MODELS["2B"]


@pytest.mark.parametrize(
    "use",
    [
        lambda model, folder: model.positions,
        lambda model, folder: model.has_head,
        lambda model, folder: model.save(folder),
    ],
)
def test_a_module_that_is_not_of_transformers_is_refused_by_name(use, tmp_path):
    model = LanguageModel("mine", torch.nn.Linear(2, 2), ByteTokenizer())
    with pytest.raises(ConfigError, match=r"'mine': a PreTrainedModel.*expected, got Linear"):
        use(model, tmp_path)


# --- tokenizers


@pytest.fixture(scope="module")
def byt5():
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer(extra_ids=0)


@settings(max_examples=100)
@given(st.text(max_size=60))
def test_the_byte_tokenizer_equals_byt5s(byt5, text):
    options = {"add_special_tokens": False, "split_special_tokens": True}
    tokens = ByteTokenizer().encode(text)
    assert tokens.tolist() == byt5(text, **options).input_ids
    assert ByteTokenizer().decode(tokens) == text


def test_the_byte_tokenizers_special_tokens_are_byt5s(byt5):
    assert ByteTokenizer().end == byt5.eos_token_id
    assert ByteTokenizer().size == len(byt5)


def test_special_tokens_spelt_out_in_a_text_are_text():
    text = "a </s> b<pad>"
    assert ByteTokenizer().encode(text).tolist() == [byte + 3 for byte in text.encode()]
    assert ByteTokenizer().encode("\ud800").tolist() == [ord("?") + 3]


def word_tokenizer(**special):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "one": 1, "two": 2, "END": 3}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", **special)


def test_any_hugging_face_tokenizer_comes_with_its_model(tmp_path):
    module = hollow(Shape(8, 1, 1, 16, 4))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    tokenizer = HubTokenizer(word_tokenizer(eos_token="END"), 3)
    LanguageModel("tiny", module, tokenizer).save(tmp_path)
    loaded = load_model(str(tmp_path), 0).tokenizer
    assert (loaded.size, loaded.end) == (4, 3)
    assert loaded.encode("two one ten").tolist() == [2, 1, 0]
    assert loaded.decode(np.array([2, 1])) == "two one"


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path):
    LanguageModel("tiny", hollow(Shape(8, 1, 1, 16, 4)), HubTokenizer(word_tokenizer(), 3)).save(
        tmp_path
    )
    with pytest.raises(DataError, match="no end-of-text token"):
        load_model(str(tmp_path), 0)
